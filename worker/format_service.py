"""The worker's side of the store of formats: stores files that a training process sends, and reads ranges of them.

The process reads the files to verify them. `worker.format_store` is the side of the process.

A file goes from the connection to object storage in parts, so it is never on the disk, and few parts are in memory. The
service does not trust the process: it accepts each file name of a format once, and a limited number of bytes.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import assert_never

from core.infra.storage import part_bytes
from seft.checkpoint.facts import ListedFile, canonical_json
from seft.config import OutputFormat
from worker import child_files
from worker.child_files import RefusedFileError
from worker.protocol import (
    MAX_BLOCK_BYTES,
    MAX_REQUEST_BYTES,
    RESULT,
    MeasureFile,
    ReadFile,
    Request,
    WriteFile,
    decode_request,
)
from worker.transfers import Transfers

MOST_OF_DENSE, SPARE_BYTES = 1.25, 64 << 20
"""Limit of a file: the first times the bytes of the dense folder, plus the second for vocabularies and indices."""


class _EndedError(Exception):
    """The process has ended, or has closed its connection."""


class FormatService:
    """Serves one training process. `folder` is the folder of its job. Keys of stored files start with `prefix`."""

    def __init__(self, folder: Path, prefix: str, transfers: Transfers) -> None:
        self._folder, self._prefix, self._transfers = folder, prefix, transfers
        self.stored: dict[str, ListedFile] = {}
        """The stored files by name, with the sizes and hashes of the bytes that were received."""

    def serve(self, connection: Connection, heartbeat: Callable[[], None]) -> None:
        """Answer requests until the process ends. Called in the transfer thread.

        Calls `heartbeat` for each message of the process. Raises RefusedFileError if a request is not allowed,
        PauseError if the object storage is full or unreachable, and TransferError if it rejects a request.
        """
        try:
            while True:
                request = _request(_receive(connection, MAX_REQUEST_BYTES))
                heartbeat()
                reply = self._answer(request, connection, heartbeat)
                try:
                    connection.send_bytes(reply)
                except OSError as error:
                    raise _EndedError from error
        except _EndedError:
            return

    def _answer(self, request: Request, connection: Connection, heartbeat: Callable[[], None]) -> bytes:
        match request:
            case WriteFile(name=name):
                self.stored[name] = self._store(name, connection, heartbeat)
                return canonical_json(self.stored[name]._asdict())
            case MeasureFile(name=name):
                return str(self._transfers.size(self._key_of_stored(name))).encode()
            case ReadFile(name=name, begin=begin, size=size):
                return self._transfers.read_range(self._key_of_stored(name), begin, size)
            case _:
                assert_never(request)

    def _key_of_stored(self, name: str) -> str:
        if name not in self.stored:
            raise RefusedFileError(f"{name!r} must be stored before it is read")
        return self._prefix + name

    def _store(self, name: str, connection: Connection, heartbeat: Callable[[], None]) -> ListedFile:
        if name not in {each.file for each in OutputFormat} - {None, *self.stored}:
            raise RefusedFileError(f"{name!r} must be the file of a format, and must not be stored yet")
        most, size, digest = self._most_bytes(), 0, hashlib.sha256()

        def parts() -> Iterator[bytes]:
            nonlocal size
            part, length = bytearray(), part_bytes(most)
            while block := _receive(connection, MAX_BLOCK_BYTES):
                heartbeat()
                size += len(block)
                if size > most:
                    raise RefusedFileError(f"{name} may have at most {most} bytes; it has more")
                digest.update(block)
                part += block
                while len(part) >= length:
                    yield bytes(part[:length])
                    del part[:length]
            if part:
                yield bytes(part)
            if not size:
                raise RefusedFileError(f"{name} must not be empty")

        self._transfers.upload_parts(parts(), self._prefix + name)
        return ListedFile(name, size, digest.hexdigest())

    def _most_bytes(self) -> int:
        """Return the maximum bytes of a file. Every format is smaller, also if the model has no zeros.

        The process can write sparse files of any size to the dense folder. So the size of the disk limits the result.
        """
        dense = 0
        if (self._folder / RESULT).exists():
            with child_files.open_folder(self._folder, RESULT) as folder:
                files = [os.stat(name, dir_fd=folder, follow_symlinks=False) for name in os.listdir(folder)]  # noqa: PTH208
            dense = min(sum(file.st_size for file in files), shutil.disk_usage(self._folder).total)
        return int(MOST_OF_DENSE * dense) + SPARE_BYTES


def _receive(connection: Connection, most: int) -> bytes:
    """Return the next message. It is never unpickled, because the process is not trusted."""
    try:
        return connection.recv_bytes(most)
    except (EOFError, OSError) as error:
        if not connection.readable:  # it is closed for reading after a message that is too long
            raise RefusedFileError(f"a message may have at most {most} bytes; it has more") from error
        raise _EndedError from error


def _request(content: bytes) -> Request:
    try:
        return decode_request(content)
    except ValueError as error:
        raise RefusedFileError(f"a request of the process is not valid: {content[:200]!r}") from error
