"""Writes a model folder as a compact container, in one pass: `seft pack`.

The container is written to any object with a method `write`, such as a multipart upload. Only a few chunks are in
memory. If matrices become integers, two of them are in memory too. The bytes of the container depend only on the names
and contents of the files, the kind of integers, and the version of zstd.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from seft.checkpoint.compact import chunk, index
from seft.checkpoint.compact.chunk import FILE, Values
from seft.checkpoint.compact.index import HEAD, FileEntry, Span, TensorEntry
from seft.checkpoint.compact.ordered import default_threads, ordered
from seft.checkpoint.compact.quantised import MARK, IntegerKind, QuantisedFile
from seft.checkpoint.outputs import new_file
from seft.errors import ConfigError, ContainerError
from seft.models.model_files import CONFIG
from seft.models.safetensors_header import Header, Tensor
from seft.models.shapes import file_header
from seft.models.tensors import expert_count

_SUFFIX = ".safetensors"


class Sizes(NamedTuple):
    """Bytes of a container and of its folder."""

    container: int
    folder: int


class _Part(NamedTuple):
    """A tensor, or the bytes of a file that belong to no tensor. `begin` and `end` are places in the file.

    `read(begin, size)` returns bytes of the file.
    """

    file: str
    read: Callable[[int, int], bytes]
    begin: int
    end: int
    values: Values = FILE
    name: str = ""
    tensor: Tensor | None = None

    def chunks(self) -> "Iterator[_Chunk]":
        at = self.begin
        for size in chunk.chunk_sizes(self.end - self.begin, self.values):
            yield _Chunk(self, at, size)
            at += size


class _Chunk(NamedTuple):
    part: _Part
    begin: int
    size: int


class _Coded(NamedTuple):
    """The stored bytes of a chunk, and the SHA-256 of its bytes before coding."""

    stored: bytes
    sha256: bytes


def write(
    folder: Path,
    file: BinaryIO,
    *,
    names: Collection[str] | None = None,
    integers: IntegerKind | None = None,
    threads: int | None = None,
) -> Sizes:
    """Write all files of a folder, or those with these `names`, as a container to `file`.

    With `integers`, the matrices of the model are stored as `seft.checkpoint.compact.quantised` describes. Otherwise
    every byte is kept. Empty folders and the modes and times of files are not kept. Raises ConfigError if the folder is
    missing, empty or has something that cannot be stored, and ContainerError if it exceeds a limit of the format, or if
    a weight is not finite and becomes an integer.
    """
    parts = list(_parts(folder, names, integers))
    files: list[tuple[_Part, Span, list[TensorEntry]]] = []
    file.write(HEAD)
    at, chunks = len(HEAD), (each for part in parts for each in part.chunks())
    with closing(ordered(_encode, chunks, threads or default_threads())) as coded:
        for part in parts:
            begin, hashes = at, hashlib.sha256()
            for _ in part.chunks():
                each = next(coded)
                file.write(each.stored)
                at += len(each.stored)
                hashes.update(each.sha256)
            span = Span(begin, at, hashes.hexdigest())
            if part.tensor is None:
                files.append((part, span, []))
            else:
                files[-1][2].append(TensorEntry(part.name, part.tensor.dtype, part.tensor.shape, span))
    entries = [FileEntry(own.file, own.end - own.begin, span, tuple(tensors)) for own, span, tensors in files]
    content, folder_bytes = index.dump(entries), sum(part.end - part.begin for part in parts)
    try:
        index.require_expansion(folder_bytes, at)
    except ValueError as error:
        raise ContainerError(f"{error}. The weights are nearly all zero; keep the folder instead.") from error
    end = content + index.pack_footer(content, at)
    file.write(end)
    return Sizes(at + len(end), folder_bytes)


def pack(folder: Path, path: Path, *, threads: int | None = None) -> Sizes:
    """Write a folder as the container `path`. The file gets its name when it is complete.

    Raises the errors of `write`, and ConfigError if `path` exists, cannot be written or is inside the folder.
    """
    if path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("out", "must be outside of the folder that it contains", str(path), "Use another folder.")
    with new_file(path) as unfinished, unfinished.open("xb") as file:
        return write(folder, file, threads=threads)


def _encode(each: _Chunk) -> _Coded:
    data = each.part.read(each.begin, each.size)
    if len(data) != each.size:
        raise ConfigError("folder", "must not change while it is read", each.part.file, "Pack it again.")
    return _Coded(chunk.encode(data, each.part.values), hashlib.sha256(data).digest())


def _parts(folder: Path, names: Collection[str] | None, integers: IntegerKind | None) -> Iterator[_Part]:
    experts = expert_count(json.loads((folder / CONFIG).read_bytes())) if integers else 0
    found = False
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if names is not None and name not in names:
            continue
        try:
            index.require_path(name)
        except ValueError as error:
            raise ConfigError("folder", "must have files with plain names", name, f"Rename it: {error}.") from error
        header = _header(path)
        if integers and header:
            quantised = QuantisedFile(path, header, integers, experts)
            found |= quantised.has_integers
            yield from _parts_of_file(name, quantised.read, quantised.size, quantised.tensors)
            continue
        yield from _parts_of_file(name, partial(_read, path), path.stat().st_size, header.tensors if header else {})
    if integers and not found:
        rule = "must have matrices in bfloat16, so that they can become integers"
        raise ConfigError("folder", rule, str(folder), "Convert it, or use the format compact.")


def _header(path: Path) -> Header | None:
    """Return the header of a safetensors file, or None for another file. A damaged file is stored like a text.

    Raises ConfigError if the file has the mark of integers, because a reader would not restore its bytes.
    """
    if not path.name.endswith(_SUFFIX):
        return None
    try:
        header = file_header(path)
    except ValueError:
        return None
    if MARK in header.metadata:
        rule = f"must have no safetensors file with {MARK} in its metadata, which only containers have"
        raise ConfigError("folder", rule, path.name, "Remove this key from the file.", lead="one is")
    return header


def _read(path: Path, begin: int, size: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size, begin)


def _parts_of_file(
    name: str, read: Callable[[int, int], bytes], size: int, tensors: Mapping[str, Tensor]
) -> Iterator[_Part]:
    """Yield the bytes of a file that belong to no tensor, and then its tensors in the order of their bytes."""
    places = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    own = places[0][1].begin if places else size
    part = partial(_Part, name, read)
    yield part(0, own)
    for key, tensor in places:
        yield part(tensor.begin, tensor.end, chunk.values_of(tensor.dtype), key, tensor)


def _refuse(error: OSError) -> None:
    """Raise an error that os.walk would ignore, so that no file is left out."""
    raise error


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted by name. Links to files are read, and other things are refused."""
    if not folder.is_dir():
        raise ConfigError("folder", "must be a folder with a model", str(folder), "Check the path.")
    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=_refuse):
        odd = [Path(root, name) for name in folders if Path(root, name).is_symlink()]
        odd += [Path(root, name) for name in names if not Path(root, name).is_file()]
        if odd:
            raise ConfigError("folder", "must have only files and folders", str(odd[0]), "Remove it.")
        files += [Path(root, name) for name in names]
    if not files:
        raise ConfigError("folder", "must have files", str(folder), "Check the path.")
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())
