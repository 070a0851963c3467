"""List the content of a folder that other processes may change. Symbolic links are not followed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all files and folders in a folder, at any depth. Folders that cannot be read are skipped."""
    pending = [os.fspath(folder)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                yield entry


def size(folder: Path) -> int:
    """Return the total size in bytes of all regular files in a folder. Files that cannot be read are skipped."""
    total = 0
    for entry in entries(folder):
        with suppress(OSError):  # it has just been deleted, or its path is too long
            if entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total
