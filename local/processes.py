"""Child processes that end with their owner, and how to end them earlier. Knows nothing of what they do."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LEASH = Path(__file__).with_name("leash.py")


class LocalError(Exception):
    """The local stack cannot do what was asked; the message names the way out."""


def spawn(
    command: Sequence[str],
    *,
    log: Path,
    orphaned: signal.Signals | None,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    hold: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, so that a terminal's Ctrl-C reaches only the owner.

    It gets the signal `orphaned`, if one is named, when the owner's main thread ends (the kernel watches the spawning
    thread, hence the check). `prefix` changes the user first. `hold` are file descriptors that it keeps open.
    """
    if threading.current_thread() is not threading.main_thread():
        raise LocalError("A process on a leash must be started from the main thread; it dies with its thread.")
    leash = [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), str(int(orphaned or 0))]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*prefix, *leash, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=hold,
        )


def stop(process: subprocess.Popen[bytes], farewell: signal.Signals, patience: float) -> None:
    """Ask it to end; after `patience` seconds end it."""
    process.send_signal(farewell)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to it and to its children, as a power cut would."""
    children = children_of(process.pid)
    process.kill()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    process.wait()


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children; none when it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def tail(log: Path, lines: int = 8) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
