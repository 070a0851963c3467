"""Free disk space. It is checked before a large write, so a state or checkpoint is written completely or not at all."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 32 << 20
"""Bytes that always stay free, for logs or a database on the same disk."""


class NoDiskSpaceError(OSError):
    """The disk has less free space than the `needed` bytes."""

    def __init__(self, folder: Path, needed: int, free: int) -> None:
        way_out = "Free disk space for the scratch folder: the job continues as soon as there is enough."
        super().__init__(errno.ENOSPC, f"The job needs {needed} bytes in {folder}, but only {free} are free. {way_out}")
        self.needed = needed


def require_space(folder: Path, needed: int) -> None:
    """Raise NoDiskSpaceError unless the disk has `needed` free bytes and a reserve."""
    available = max(0, shutil.disk_usage(folder).free - RESERVE_BYTES)
    if available < needed:
        raise NoDiskSpaceError(folder, needed, available)


def free(folder: Path) -> int:
    """Return the free bytes for a folder, which is created; 0 if it cannot be (the next attempt reports the error)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def required_space(folder: Path, needed: int | None) -> int:
    """Return the bytes that must be free to write the folder's content again and `needed` more bytes.

    If `needed` is unknown, more must be free than now.
    """
    further = shutil.disk_usage(folder).free if needed is None else needed
    return size(folder) + further + RESERVE_BYTES


def size(folder: Path) -> int:
    """Return the total bytes of all files in the folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another thread has removed it
            total += path.stat().st_size
    return total
