"""Room on the disk: asked for before much is written, so that a state or a checkpoint is written whole or not begun."""

import errno
import shutil
from contextlib import suppress
from pathlib import Path

RESERVE_BYTES = 32 << 20
"""Left free always: a log line, a database on the same disk."""


class NoDiskSpaceError(OSError):
    """The disk has too little room for the `needed` bytes."""

    def __init__(self, folder: Path, needed: int, free: int) -> None:
        way_out = "The job waits until there is room: give the scratch folder more."
        super().__init__(errno.ENOSPC, f"{needed} bytes are to be written at {folder}, {free} are free. {way_out}")
        self.needed = needed


def require_space(folder: Path, needed: int) -> None:
    """NoRoomError unless `needed` bytes can be written there and a reserve stays."""
    left = max(0, shutil.disk_usage(folder).free - RESERVE_BYTES)
    if left < needed:
        raise NoDiskSpaceError(folder, needed, left)


def free(folder: Path) -> int:
    """Bytes free in a folder, which is made; 0 where there can be none, as the attempt that needs it will tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def required_space(folder: Path, needed: int | None) -> int:
    """Bytes that must be free before all that is in the folder is made again, and what is to be written beside it.

    Where nobody knows how much that is, it is more than is free now.
    """
    beside = shutil.disk_usage(folder).free if needed is None else needed
    return size(folder) + beside + RESERVE_BYTES


def size(folder: Path) -> int:
    """Bytes of all files in the folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another thread has removed it
            total += path.stat().st_size
    return total
