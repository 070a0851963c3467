"""Check the free disk space before a large write. A full disk would leave a part of a state or a checkpoint."""

import errno
import shutil
from pathlib import Path

from core.infra import folders
from core.states import LARGEST_NEED

RESERVE_BYTES = 32 << 20
"""Bytes that always stay free, for logs or for a database on the same disk."""


class NoDiskSpaceError(OSError):
    """The disk has less free space than the `needed` bytes plus the reserve."""

    def __init__(self, folder: Path, needed: int, available: int) -> None:
        way_out = "Free disk space for the scratch folder: the job continues as soon as there is enough."
        message = f"The job needs {needed} bytes in {folder}, but only {available} are available. {way_out}"
        super().__init__(errno.ENOSPC, message)
        self.needed = needed


def require_space(folder: Path, needed: int) -> None:
    """Raise NoDiskSpaceError unless the disk has `needed` bytes free in addition to `RESERVE_BYTES`."""
    available = max(0, shutil.disk_usage(folder).free - RESERVE_BYTES)
    if available < needed:
        raise NoDiskSpaceError(folder, needed, available)


def free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder. The folder is created if it is missing.

    Returns 0 if the folder cannot be created. The next attempt then reports the error.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def required_space(folder: Path, needed: int | None) -> int:
    """Return the bytes that must be free to write the content of the folder again and `needed` more bytes.

    `needed` is None if the error of a write did not say how many bytes are missing. If the disk is full, the result is
    then more than the bytes that are free without the folder. If it is not full, the error had another cause, such as a
    quota, and `needed` counts as 0. The result is at most `LARGEST_NEED`.
    """
    if needed is None:
        available = free(folder)
        needed = available if available <= RESERVE_BYTES else 0
    return min(folders.size(folder) + needed + RESERVE_BYTES, LARGEST_NEED)
