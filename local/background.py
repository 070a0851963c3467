"""Run the stack in a background process, the supervisor. Other processes use this module to start, find and stop it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from local import processes
from local.folder import STEP_FILE, FolderLock, write_private
from local.processes import LocalError
from local.servers import require_valid_environment
from local.stack import Stack

ADDRESS_FILE = "running.json"
READY_SECONDS = 900.0
STOP_SECONDS = 210.0
"""Longer than the worker, the API and the three servers may take in total to stop."""
Report = Callable[[str], None]
"""Function that is called with each step of a start or a stop."""
CHECK_SECONDS = 0.2
"""Seconds between two checks whether all programs of the stack are running."""


@dataclass(frozen=True)
class Running:
    """A stack that is running."""

    supervisor: int
    """Process id of the supervisor."""
    url: str
    api_key: str


def supervise(folder: Path) -> None:
    """Run the stack in this process until SIGTERM or Ctrl-C, then shut it down."""
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, _exit)
    with Stack(folder) as stack:
        # This second descriptor of the lock is never closed, so the folder is locked until this process ends.
        os.dup(stack.servers.lock.descriptor)
        address = stack.folder / ADDRESS_FILE
        write_private(address, json.dumps(asdict(Running(os.getpid(), stack.api.url, stack.key))))
        try:
            while True:
                stack.restart_ended()
                time.sleep(CHECK_SECONDS)
        finally:
            address.unlink()


def _exit(_signal: int, _frame: FrameType | None) -> None:
    """Handle the first signal by raising SystemExit, so that the stack shuts down. Ignore further signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(0)


def find(folder: Path) -> Running | None:
    """Return the stack that runs in this folder, or None if no stack runs in it."""
    with suppress(FileNotFoundError):
        running = Running(**json.loads((folder / ADDRESS_FILE).read_text()))
        if FolderLock(folder).holder() == running.supervisor:
            return running
    return None


def start(folder: Path, report: Report) -> Running:
    """Start a stack in the background and wait until it is ready. It runs until `stop` is called."""
    return _launch(folder, None, report)[1]


@contextmanager
def attached(folder: Path, report: Report) -> Iterator[Running]:
    """Run a stack in the background while the `with` block runs.

    The stack also stops if this process ends, even if it is killed.
    """
    process, running = _launch(folder, signal.SIGTERM, report)
    try:
        yield running
    finally:
        processes.stop(process, signal.SIGTERM, STOP_SECONDS)


def _launch(
    folder: Path, parent_death_signal: signal.Signals | None, report: Report
) -> tuple[subprocess.Popen[bytes], Running]:
    require_valid_environment()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    report("starting the supervisor")
    log, steps = folder / "log", _Steps(folder, report)
    command = [sys.executable, "-m", "local", "run", "--folder", str(folder)]
    process = processes.spawn(command, log=log, parent_death_signal=parent_death_signal)
    try:
        return process, _wait(folder, process, log, steps)
    except BaseException:
        processes.stop(process, signal.SIGTERM, STOP_SECONDS)
        raise


def _wait(folder: Path, process: subprocess.Popen[bytes], log: Path, steps: "_Steps") -> Running:
    deadline = time.monotonic() + READY_SECONDS
    while (running := find(folder)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise LocalError(f"The stack did not start. The end of {log}:\n{processes.tail(log)}")
        steps.look()
        time.sleep(0.05)
    return running


class _Steps:
    """Reports each new step of a stack that another process starts or stops. Short steps can be missed."""

    def __init__(self, folder: Path, report: Report) -> None:
        self._file, self._report = folder / STEP_FILE, report
        self._last = self._read()

    def look(self) -> None:
        """Report the present step if it is a new one."""
        if (step := self._read()) != self._last:
            self._last = step
            self._report(step)

    def _read(self) -> str:
        with suppress(FileNotFoundError):
            return self._file.read_text()
        return ""


def stop(folder: Path, report: Report) -> bool:
    """Stop the stack of this folder and wait until its last process has ended. Returns False if none was running."""
    if not folder.exists():
        return False
    lock = FolderLock(folder)
    if lock.free():
        return False
    steps = _Steps(folder, report)
    if supervisor := lock.holder():
        os.kill(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while not lock.free():
        if time.monotonic() > deadline:
            pid = lock.holder()
            way_out = f" Kill its process {pid}." if pid else ""
            raise LocalError(f"The stack in {folder} did not stop within {STOP_SECONDS:.0f} s.{way_out}")
        steps.look()
        time.sleep(0.05)
    return True
