"""The training process as its worker holds it: a process group of its own, a pipe of messages, the tail of its log.

It inherits none of our settings: whatever it could leak or break, it has no database and no object storage. What it is
told and what it answers is in `worker.protocol`.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from core.infra import tracing

LOG_BYTES = 8000
"""So much of what the process last wrote to its output is kept in memory."""
LINE_BYTES = 1 << 20
LOG_SECONDS = 5.0
"""A process that left the group could hold the log open for ever."""


class Process:
    """A running process group. `heard` is called with each line of its pipe, then `ended` once, both in a thread."""

    def __init__(
        self, command: Sequence[str], folder: Path, heard: Callable[[bytes], None], ended: Callable[[int], None]
    ) -> None:
        self._heard, self._ended = heard, ended
        self._reaping = threading.Lock()
        self._tail = b""
        messages, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(folder), str(theirs), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                start_new_session=True,
                env=_environment(),
            )
        except BaseException:
            os.close(messages)
            raise
        finally:
            os.close(theirs)
        self._log = threading.Thread(target=self._read_log, daemon=True)
        self._log.start()
        self._listener = threading.Thread(target=self._listen, args=[os.fdopen(messages, "rb")], daemon=True)
        self._listener.start()

    @property
    def tail(self) -> str:
        """The end of what it wrote to its output, as a text that a database takes."""
        return self._tail.decode(errors="replace").replace("\0", "").strip()

    def ask_to_stop(self) -> None:
        """It saves and ends, in its own time."""
        self._signal(lambda pid: os.kill(pid, signal.SIGTERM))

    def ask_for_stacks(self) -> None:
        """It writes the stack of each of its threads to its output, even when it hangs."""
        self._signal(lambda pid: os.kill(pid, signal.SIGUSR2))

    def kill(self) -> None:
        """End the whole group, and wait until its first process is gone. Nothing happens when it has ended."""
        self._signal(lambda pid: os.killpg(pid, signal.SIGKILL))
        self._listener.join()

    def _signal(self, send: Callable[[int], None]) -> None:
        # Before the process is reaped its number cannot name another one.
        with self._reaping:
            if self._process.returncode is None:
                send(self._process.pid)

    def _listen(self, messages: BinaryIO) -> None:
        with messages:
            while line := messages.readline(LINE_BYTES):
                self._heard(line)
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        # Those that it started itself must not outlive it, and they hold its log open.
        with self._reaping:
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        self._log.join(LOG_SECONDS)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._ended(code)

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while block := os.read(output.fileno(), 1 << 16):
                self._tail = (self._tail + block)[-LOG_BYTES:]


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEFT_")}
    trace = {tracing.VARIABLE: here} if (here := tracing.current_traceparent()) else {}
    # Threads that spin while they wait for each other are several times slower where other programs want the cores.
    return {"OMP_WAIT_POLICY": "passive", **inherited, **trace}
