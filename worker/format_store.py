"""The training process's side of the store of formats. The worker puts the files into object storage.

The process has no network, so it sends requests over a connection to its worker (`worker.format_service`). It also
sends the bytes of a file while it creates them. So no second copy of the model is on the disk.
"""

import io
import json
from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, BinaryIO, cast

from typing_extensions import override

from seft.checkpoint.facts import ListedFile
from seft.errors import ContainerError
from worker.protocol import MAX_BLOCK_BYTES, MeasureFile, ReadFile, Request, WriteFile, encode


class FormatStore:
    """Writes and reads files of formats. Only one process at a time may use it: this one, or later a fork of it."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._lock = Lock()

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._connection.fileno()

    def write(self, name: str, content: Callable[[BinaryIO], object]) -> ListedFile:
        """Store what `content` writes to a stream as a new file. Return its entry in the manifest."""
        with self._lock:
            self._connection.send_bytes(encode(WriteFile(name=name)))
            with io.BufferedWriter(_Blocks(self._connection), MAX_BLOCK_BYTES) as stream:
                content(cast("BinaryIO", stream))
            self._connection.send_bytes(b"")  # after an error it is not sent, so the file is not stored
            return ListedFile(**json.loads(self._connection.recv_bytes()))

    def open(self, name: str) -> "_StoredFile":
        """Open a stored file to read it."""
        return _StoredFile(name, int(self.ask(MeasureFile(name=name))), self)

    def ask(self, request: Request) -> bytes:
        """Send a request and return the reply."""
        with self._lock:
            self._connection.send_bytes(encode(request))
            return self._connection.recv_bytes()


class _StoredFile:
    """A stored file of which any range can be read."""

    def __init__(self, name: str, size: int, store: FormatStore) -> None:
        self.name, self.size, self._store = name, size, store

    def read(self, begin: int, size: int) -> bytes:
        """Return `size` bytes from the byte `begin`. Raises ContainerError if the file is shorter."""
        content, end = bytearray(), begin + size
        if end > self.size:
            raise ContainerError(f"{self.name} must have {end} bytes; it has {self.size}. Start the job again.")
        while (at := begin + len(content)) < end:
            wanted = min(end - at, MAX_BLOCK_BYTES)
            content += self._store.ask(ReadFile(name=self.name, begin=at, size=wanted))
        return bytes(content)

    def close(self) -> None:
        """Do nothing: the connection stays open for other files."""


class _Blocks(io.RawIOBase):
    """A stream whose bytes are sent in blocks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, data: Any) -> int:
        block = memoryview(data)[:MAX_BLOCK_BYTES]
        if block:
            self._connection.send_bytes(block)
        return len(block)
