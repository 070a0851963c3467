"""Temporary folders for downloads. If a process is killed, its folder is deleted when a process makes the next one.

The temporary folder of a container can be a volume, so nothing else deletes what a killed process leaves there.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

PREFIX = "seft-download-"
NEW_SECONDS = 60.0
"""A folder without a lock is abandoned if it is older than this. A newer one may not be locked yet."""


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a new temporary folder, and delete it at the end of the `with` block."""
    for path in Path(gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, or of another user, or another process has just deleted it
            if time.time() - path.stat().st_mtime > NEW_SECONDS:
                with _locked(path):
                    shutil.rmtree(path)
    with TemporaryDirectory(prefix=PREFIX) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a folder. The lock ends with the process. Raises BlockingIOError if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
