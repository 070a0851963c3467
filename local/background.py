"""A stack in the background: its supervisor process, started, found again and stopped from other processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from local import processes
from local.folder import FolderLock, write_private
from local.processes import LocalError
from local.stack import Stack

READY_SECONDS = 120.0
STOP_SECONDS = 120.0
ROUND_SECONDS = 0.2


@dataclass(frozen=True)
class Running:
    """A stack that answers."""

    supervisor: int
    """Process id."""
    url: str
    api_key: str


def supervise(folder: Path) -> None:
    """Run the stack in the foreground until SIGTERM or Ctrl-C, then stop it in good order."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    with Stack(folder) as stack:
        # A second descriptor of the lock, closed by no one: the folder is free when this process has ended as well.
        os.dup(stack.servers.lock.descriptor)
        note = stack.folder / "running.json"
        write_private(note, json.dumps(asdict(Running(os.getpid(), stack.api.url, stack.key))))
        try:
            while True:
                stack.tend()
                time.sleep(ROUND_SECONDS)
        finally:
            note.unlink()


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """Unwind once; more of these signals change nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)


def find(folder: Path) -> Running | None:
    """The stack that runs in this folder."""
    note = folder / "running.json"
    with suppress(FileNotFoundError):
        running = Running(**json.loads(note.read_text()))
        if FolderLock(folder).holder() == running.supervisor:
            return running
    return None


def start(folder: Path) -> Running:
    """Start a stack in the background, which stays until `stop`; wait until it answers."""
    return _launch(folder, None)[1]


@contextmanager
def leashed(folder: Path) -> Iterator[Running]:
    """A stack in the background that stops at the block's end, or when this process ends in whatever way."""
    process, running = _launch(folder, signal.SIGTERM)
    try:
        yield running
    finally:
        processes.stop(process, signal.SIGTERM, STOP_SECONDS)


def _launch(folder: Path, orphaned: signal.Signals | None) -> tuple[subprocess.Popen[bytes], Running]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder / "log"
    command = [sys.executable, "-m", "local", "run", "--folder", str(folder)]
    process = processes.spawn(command, log=log, orphaned=orphaned)
    try:
        return process, _wait(folder, process, log)
    except BaseException:
        processes.stop(process, signal.SIGTERM, STOP_SECONDS)
        raise


def _wait(folder: Path, process: subprocess.Popen[bytes], log: Path) -> Running:
    deadline = time.monotonic() + READY_SECONDS
    while (running := find(folder)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise LocalError(f"The stack did not start. {log} ends:\n{processes.tail(log)}")
        time.sleep(0.05)
    return running


def stop(folder: Path) -> bool:
    """Stop the stack of this folder and wait until its last process is gone; False when none ran."""
    if not folder.exists():
        return False
    lock = FolderLock(folder)
    if lock.free():
        return False
    if supervisor := lock.holder():
        os.kill(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while not lock.free():
        if time.monotonic() > deadline:
            raise LocalError(f"The stack in {folder} does not stop; process {lock.holder()} supervises it.")
        time.sleep(0.05)
    return True
