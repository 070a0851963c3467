"""Control the training process from the worker: its process group, its two connections, and its latest output.

The process gets only the environment variables that `worker.environment` names. So it gets neither the password of the
database nor the keys of the object storage. `worker.protocol` defines the messages.
"""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

from worker import environment
from worker.protocol import MAX_MESSAGE_BYTES

MAX_WAITING_BYTES = 64 << 20
"""Bytes of unhandled lines at which reading stops. The process then blocks when it writes."""
LOG_BYTES = 8000
"""Bytes of the newest output of the process that are kept in memory."""
LOG_SECONDS = 5.0
"""Maximum seconds to wait for the end of the output. A child that left the process group could keep it open."""


class Process:
    """A running process group.

    A thread calls `on_line` with each line that the process writes to its pipe. When the process has ended, the thread
    calls `on_exit` once with the exit status, which is negative for a signal. Call `handled` for each line. Otherwise
    reading stops at `MAX_WAITING_BYTES`, which limits the memory of the worker.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, on_line: Callable[[bytes], None], on_exit: Callable[[int], None]
    ) -> None:
        self._on_line, self._on_exit = on_line, on_exit
        self._reaping = threading.Lock()
        self._waiting_bytes, self._killed, self._changed = 0, False, threading.Condition()
        self._tail = b""
        messages, child_end = os.pipe()
        self._requests, requests_end = socket.socketpair()
        self.connection = Connection(os.dup(self._requests.fileno()))
        """The connection over which the process sends requests about files of formats."""
        try:
            self._process = subprocess.Popen(
                [*command, str(folder), str(child_end), str(os.getpid()), str(requests_end.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[child_end, requests_end.fileno()],
                start_new_session=True,
                env=environment.of_child(os.environ, folder),
            )
        except BaseException:
            os.close(messages)
            self._close_connection()
            raise
        finally:
            os.close(child_end)
            requests_end.close()
        self._log = threading.Thread(target=self._read_log, daemon=True)
        self._log.start()
        self._listener = threading.Thread(target=self._listen, args=[os.fdopen(messages, "rb")], daemon=True)
        self._listener.start()

    @property
    def tail(self) -> str:
        """The last part of the process's output. NUL characters are removed, because Postgres rejects them."""
        return self._tail.decode(errors="replace").replace("\0", "").strip()

    def request_stop(self) -> None:
        """Ask the process to save its state and exit. Does not wait for the exit."""
        self._signal(lambda pid: os.kill(pid, signal.SIGTERM))

    def request_stacks(self) -> None:
        """Ask each process of the group to write the stacks of its threads to its output, even if it hangs."""
        self._signal(lambda pid: os.killpg(pid, signal.SIGUSR2))

    def kill(self) -> None:
        """Kill the whole process group. Wait until its first process has ended and `on_exit` was called. Idempotent."""
        self._signal(lambda pid: os.killpg(pid, signal.SIGKILL))
        with self._changed:
            self._killed = True
            self._changed.notify()
        self._listener.join()

    def handled(self, line: bytes) -> None:
        """Report that a line which `on_line` received has been handled."""
        with self._changed:
            self._waiting_bytes -= len(line)
            self._changed.notify()

    def _signal(self, send: Callable[[int], None]) -> None:
        # Until the process is reaped, its id cannot belong to another process.
        with self._reaping:
            if self._process.returncode is None:
                send(self._process.pid)

    def _listen(self, messages: BinaryIO) -> None:
        with messages:
            while line := messages.readline(MAX_MESSAGE_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting_bytes < MAX_WAITING_BYTES or self._killed)
                    self._waiting_bytes += len(line)
                self._on_line(line)
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        # Processes that it started must not outlive it. They would also keep its output open.
        with self._reaping:
            os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        self._close_connection()
        self._log.join(LOG_SECONDS)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._on_exit(code)

    def _close_connection(self) -> None:
        """Shut down the connection. This ends the wait of a thread that has another descriptor of the connection."""
        with suppress(OSError):  # the other side has ended it
            self._requests.shutdown(socket.SHUT_RDWR)
        self._requests.close()

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while block := os.read(output.fileno(), 1 << 16):
                self._tail = (self._tail + block)[-LOG_BYTES:]
