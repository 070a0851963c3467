"""Child processes that end when their parent ends: functions to start, stop and kill them."""

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
    """An error of the local stack that the user can fix. The message says how to fix it."""


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    parent_death_signal: signal.Signals | None,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    inherited: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, so that Ctrl-C in a terminal reaches only the parent process.

    When the main thread of this process ends, the command gets the signal `parent_death_signal`, if that is set.
    `prefix` is a command that changes the user before `command` runs. `inherited` are file descriptors that stay open
    in the new process. Raises LocalError if it is not called in the main thread, because the kernel would send the
    signal when the calling thread ends.
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
    """Send `stop_signal` to a process and wait for its end. Kill it if it still runs after `timeout` seconds."""
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
    """Return the direct children of all threads of a process. The list is empty if the process has ended."""
    children = list[int]()
    with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                children += map(int, (thread / "children").read_text().split())
    return children


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
