"""Reads a compact container: one tensor, one file, or all of it into a folder (`seft expand`).

Every byte that is returned was checked against a SHA-256. An error names the tensor or the file that is damaged.
"""

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seft.checkpoint.compact import chunk, index
from seft.checkpoint.compact.byte_sources import ByteSource, open_source
from seft.checkpoint.compact.chunk import ALIGNMENT
from seft.checkpoint.compact.expanded import DenseFile, integer_matrices
from seft.checkpoint.compact.index import AGAIN, FOOTER_BYTES, HEAD, FileEntry, Part, TensorEntry
from seft.checkpoint.compact.ordered import default_threads, ordered
from seft.checkpoint.compact.planes import Bytes, Stored
from seft.checkpoint.outputs import new_folder
from seft.errors import ContainerError
from seft.models.safetensors_header import Tensor, read_header

WINDOW = 8 << 20
"""Bytes that are read at a time, so that a remote container needs few requests."""
_HEADERS = 8
"""Headers of safetensors files that are kept in memory. Each has at most 4 MiB."""


class _Coded(NamedTuple):
    """The stored bytes of a chunk, the size of its content, and the tensor or file that it belongs to."""

    stored: Stored
    size: int
    part: Part


class _Content(NamedTuple):
    """The content of a chunk and its SHA-256."""

    content: Bytes
    sha256: bytes


class Container:
    """An open container. Several threads may read it. `name` is for messages and has no secrets."""

    def __init__(self, source: ByteSource) -> None:
        """Read the index. Raises ContainerError if the file is not a container or its index is damaged."""
        self._source, self.name = source, source.name
        self._kept_header = lru_cache(_HEADERS)(self._header)
        try:
            if source.size < len(HEAD) + FOOTER_BYTES:
                raise ValueError(f"a compact container must have {len(HEAD) + FOOTER_BYTES} bytes or more")
            end = source.size - FOOTER_BYTES
            footer = index.parse_footer(source.read(end, FOOTER_BYTES), source.size)
            self.files = index.parse(source.read(footer.begin, footer.size), footer)
        except ValueError as error:
            version = index.version_of(source.read(0, min(source.size, len(HEAD))))
            if version not in {None, index.VERSION}:
                message = f"a compact container must have version {index.VERSION} of the format; {source.name} has"
                raise ContainerError(f"{message} version {version}. Read it with a newer seft.") from error
            raise ContainerError(f"{source.name} is not an intact compact container: {error}. {AGAIN}") from error

    @property
    def size(self) -> int:
        """Bytes of the folder."""
        return sum(file.size for file in self.files)

    def tensor(self, tensor: TensorEntry) -> Bytes:
        """Return the bytes of a tensor, as a safetensors file has them."""
        return self._whole(tensor.part)

    def own_bytes(self, file: FileEntry) -> bytes:
        """Return the bytes of a file that belong to no tensor: the whole text, or the header of a safetensors file.

        Raises ContainerError if the header does not describe the tensors in the index.
        """
        return self._kept_header(file) if file.tensors else self._whole(file.parts[0]).tobytes()

    def contents(self, file: FileEntry, *, threads: int | None = None) -> Iterator[Bytes]:
        """Yield all bytes of a file in their order, a chunk at a time.

        Raises ContainerError if a tensor or the file is damaged, at the latest after its last chunk.
        """
        parts = file.parts
        if file.tensors:
            yield np.frombuffer(self.own_bytes(file), np.uint8)
            parts = parts[1:]
        coded = (each for part in parts for each in self._chunks(part))
        with closing(ordered(self._decode, coded, threads or default_threads())) as decoded:
            for part in parts:
                hashes = hashlib.sha256()
                for _ in chunk.chunk_sizes(part.size, part.values):
                    each = next(decoded)
                    yield each.content
                    hashes.update(each.sha256)
                self._require_hash(part, hashes.hexdigest())

    def expand(self, out: Path, *, threads: int | None = None) -> int:
        """Write all files into the new or empty folder `out`, and return the number of their bytes.

        Matrices that are stored as integers become bfloat16. Files with such matrices are always read in one thread;
        `threads` is for the other files. The folder is left empty if an error is raised. Raises ConfigError if the
        folder cannot be used, OSError if the disk is too small, and ContainerError if a tensor or a file is damaged.
        """
        with new_folder(out) as unfinished:
            dense = {
                file.name: DenseFile(self, file, found)
                for file in self.files
                if (found := integer_matrices(self, file))
            }
            size = sum(dense[file.name].size if file.name in dense else file.size for file in self.files)
            self.require_expansion(size)
            if (free := shutil.disk_usage(out).free) < size:
                raise OSError(errno.ENOSPC, f"the folder needs {size:,} bytes and {free:,} are free", str(out))
            for file in self.files:
                path, whole = unfinished / file.name, dense.get(file.name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as target:
                    for content in whole.contents() if whole else self.contents(file, threads=threads):
                        target.write(content.data)
        return size

    def require_expansion(self, size: int) -> None:
        """Raise ContainerError if a folder of `size` bytes, with the integers as bfloat16, is too large.

        The check of the index counted one byte for each integer.
        """
        try:
            index.require_expansion(size, self._source.size)
        except ValueError as error:
            raise ContainerError(f"{self.name} must not be expanded: {error}. {AGAIN}") from error

    def _header(self, file: FileEntry) -> bytes:
        content = self._whole(file.parts[0]).tobytes()
        _require_header(self.name, file, content)
        return content

    def _whole(self, part: Part) -> Bytes:
        content, at, hashes = np.empty(part.size, np.uint8), 0, hashlib.sha256()
        for each in map(self._decode, self._chunks(part)):
            content[at : at + len(each.content)] = each.content
            at += len(each.content)
            hashes.update(each.sha256)
        self._require_hash(part, hashes.hexdigest())
        return content

    def _decode(self, each: _Coded) -> _Content:
        with self._damage(each.part.name):
            content = chunk.decode(each.stored, each.size, each.part.values)
        return _Content(content, _sha256(content))

    def _chunks(self, part: Part) -> Iterator[_Coded]:
        """Yield the chunks of a tensor or file. Reads each byte once, `WINDOW` bytes or one chunk at a time."""
        at = start = part.span.begin
        window = memoryview(b"")  # it begins at `start` of the container

        def peek(count: int) -> memoryview:
            nonlocal window, start
            end = start + len(window)
            if at + count > end:
                if at + count > part.span.end:
                    raise ValueError(f"a chunk must have {count} bytes; {part.span.end - at} are left")
                more = self._source.read(end, at + max(min(WINDOW, part.span.end - at), count) - end)
                start, window = at, memoryview(b"".join([window[at - start :], more]))
            return window[at - start : at - start + count]

        with self._damage(part.name):
            for size in chunk.chunk_sizes(part.size, part.values):
                stored = peek(chunk.stored_bytes(peek(ALIGNMENT)))
                yield _Coded(stored, size, part)
                at += len(stored)
            if at != part.span.end:
                raise ValueError(f"it has {part.span.end - at} bytes after its last chunk")

    def _require_hash(self, part: Part, digest: str) -> None:
        with self._damage(part.name):
            if digest != part.span.sha256:
                raise ValueError(f"its SHA-256 must be {part.span.sha256[:64]}; it is {digest}")

    @contextmanager
    def _damage(self, name: str) -> Iterator[None]:
        """Convert ValueError to an error that names the tensor or file."""
        try:
            yield
        except ValueError as error:
            raise ContainerError(f"{name!r} in {self.name} is damaged: {error}. {AGAIN}") from error


def _sha256(content: Bytes) -> bytes:
    return hashlib.sha256(content.data).digest()


@contextmanager
def open_container(reference: str | Path) -> Iterator[Container]:
    """Open a container: a path, a web address, or `s3://bucket/key`.

    Raises SourceError if the file cannot be read, and ContainerError if it is not a container.
    """
    with open_source(reference) as source:
        yield Container(source)


def _require_header(container: str, file: FileEntry, content: bytes) -> None:
    """Raise ContainerError unless the header of a safetensors file names the tensors of the index in their order."""
    try:
        header = read_header(lambda begin, size: content[begin : begin + size], file.size).tensors
    except ValueError as error:
        raise ContainerError(f"{file.name!r} in {container} has no valid header: {error}. {AGAIN}") from error
    at, places = file.own_bytes, {}
    for tensor in file.tensors:
        places[tensor.name] = Tensor(tensor.dtype, tensor.shape, at, at + tensor.part.size)
        at += tensor.part.size
    odd = [name for name in header.keys() | places.keys() if header.get(name) != places.get(name)]
    if odd:
        raise ContainerError(
            f"the header of {file.name!r} in {container} must describe the tensors of the index; {min(odd)!r} differs."
            f" {AGAIN}"
        )
