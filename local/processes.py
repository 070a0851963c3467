"""Child processes that end with their parent: start, stop and kill them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")


class LocalError(Exception):
    """An error of the local stack that the user can fix. The message says how."""


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    parent_death_signal: signal.Signals | None,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that a terminal's Ctrl-C reaches only the parent.

    It gets `parent_death_signal`, if set, when the main thread of this process ends. `prefix` changes the user first.
    `inherited` are file descriptors that it keeps open. Raises LocalError in any other thread, because the kernel would
    send the signal when that thread ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise LocalError(
            "A process must be started from the main thread, because it ends with the thread that started it."
        )
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(parent_death_signal or 0))]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*prefix, *launcher, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=inherited,
        )


def stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals, timeout: float) -> None:
    """Send a signal and wait; kill the process if it has not ended after `timeout` seconds."""
    process.send_signal(stop_signal)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a process and its children, and wait for the process."""
    children = children_of(process.pid)
    process.kill()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.wait()


def children_of(pid: int) -> list[int]:
    """Return the process ids of the direct children; empty if the process has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
