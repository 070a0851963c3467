"""Read, write and delete files in folders that the training process can change. The worker does not trust it.

The process could write a link in place of a file or folder. The worker would then read, overwrite or delete a file of
the service. So no link is followed below the job's folder, and only plain names are accepted.
"""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
"""Pattern of the names of files. Such a name is one segment of a path, and needs no escaping in an object key."""


class RefusedFileError(Exception):
    """The training process wrote a file, or sent a request, that the worker refuses."""


def require_name(name: str) -> None:
    """Raise RefusedFileError unless `name` is a plain file name."""
    if not NAME.fullmatch(name):
        raise RefusedFileError(f"a file name must match {NAME.pattern}; it is {name[:200]!r}")


@contextmanager
def open_folder(root: Path, *names: str) -> Iterator[int]:
    """Yield a descriptor of the folder `root/names[0]/names[1]/…`. No link is followed below `root`.

    Raises RefusedFileError if there is no such folder.
    """
    descriptor = _open(root, names)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise RefusedFileError(f"{'/'.join(names)} must be a folder")
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(root: Path, *names: str) -> BinaryIO:
    """Open the file `root/names[0]/names[1]/…` to read it. No link is followed below `root`.

    Raises RefusedFileError if there is no such regular file, or if it has several hard links.
    """
    descriptor = _open(root, names)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise RefusedFileError(f"{'/'.join(names)} must be a regular file with only one hard link")
    return os.fdopen(descriptor, "rb")


def write_file(root: Path, name: str, content: str) -> None:
    """Write a file into `root`. Replace an existing file or link of this name. No link is followed.

    Raises RefusedFileError if there is a folder of this name.
    """
    temporary = root / f"{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, flags, 0o644), "w") as file:
            file.write(content)
        temporary.rename(root / name)
    except IsADirectoryError as error:
        raise RefusedFileError(f"{name} must not be a folder") from error


def delete_folder(folder: Path) -> None:
    """Delete a folder and its content, if it exists. Raises no error if something cannot be deleted.

    The path of a folder in it can exceed the maximum length, and the folder can lack permissions. So each folder gets
    permissions and is moved to the top before its files are deleted. No link is followed.
    """
    with suppress(OSError):
        top = _open_with_rights(os.fspath(folder))
        try:
            pending = _delete_files(top, top)
            while pending:
                with suppress(OSError):
                    name = pending.pop()
                    inner = _open_with_rights(name, top)
                    try:
                        pending += _delete_files(inner, top)
                    finally:
                        os.close(inner)
                    os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
        folder.rmdir()


def delete_former_attempts(folder: Path, before: int) -> None:
    """Delete the folders of attempts with a number less than `before`. `folder` is the folder of their job."""
    with suppress(FileNotFoundError):  # another worker may delete the folder at the same time
        for each in folder.iterdir():
            if each.name.isdecimal() and int(each.name) < before:
                delete_folder(each)


def _delete_files(folder: int, top: int) -> list[str]:
    """Delete the files of a folder, and move its folders to the folder `top`. Return their new names."""
    moved = list[str]()
    with os.scandir(folder) as entries:
        for entry in list(entries):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    os.close(_open_with_rights(entry.name, folder))  # it cannot be moved without permissions
                    name = secrets.token_hex(16)
                    os.rename(entry.name, name, src_dir_fd=folder, dst_dir_fd=top)
                    moved.append(name)
                else:
                    os.unlink(entry.name, dir_fd=folder)
    return moved


def _open_with_rights(name: str, parent: int | None = None) -> int:
    """Give the owner all permissions on a folder, and return a descriptor of the folder."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    path = os.open(name, flags | os.O_PATH, dir_fd=parent)  # this needs no permissions on the folder itself
    try:
        os.chmod(f"/proc/self/fd/{path}", 0o700)  # noqa: PTH101
        return os.open(".", flags, dir_fd=path)
    finally:
        os.close(path)


def _open(root: Path, names: tuple[str, ...]) -> int:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for name in names:
        parent = descriptor
        try:
            require_name(name)
            descriptor = os.open(name, flags, dir_fd=parent)
        except OSError as error:
            raise RefusedFileError(f"{'/'.join(names)} cannot be opened, or is a link: {error}") from error
        finally:
            os.close(parent)
    return descriptor
