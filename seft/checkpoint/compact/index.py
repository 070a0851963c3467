"""The index of a compact container: its files, their tensors, and where each one is stored.

The index is written last, so a container is written in one pass. A reader checks the whole index before it trusts a
number in it: all numbers are bounded by the size of the container.
"""

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from seft.checkpoint.compact.chunk import ALIGNMENT, FILE, Values, least_bytes, most_bytes, values_of
from seft.errors import ContainerError
from seft.models.limits import (
    MAX_FILE_BYTES,
    MAX_HEADERS_BYTES,
    MAX_JSON_ITEMS,
    MAX_NAME,
    checked_shape,
    parse_json,
    require_plausible,
)
from seft.models.safetensors_header import BITS, Shape

MAGIC, VERSION = b"SEFTCOMP", 1
HEAD = struct.pack("<8sI52x", MAGIC, VERSION)
_FOOTER = struct.Struct("<QQ32sI4x8s")
FOOTER_BYTES = _FOOTER.size
MAX_EXPANSION, MIN_EXPANDED = 1000, 1 << 30
"""A folder may be this many times as large as its container, or have 1 GiB if that is more. Sparse models need 10."""
MAX_PATH, MAX_PART, MAX_PARTS = 1024, 255, 16
AGAIN = "Download the file again, or create it again with seft pack."


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor or file is in the container: its first byte, and the byte after its last one.

    `sha256` is a hash in hex: the SHA-256 of the joined SHA-256 hashes of its chunks before coding.
    """

    begin: int
    end: int
    sha256: str


class Part(NamedTuple):
    """The name of a tensor or file for messages, its place, its bytes in the folder, and how its values are coded."""

    name: str
    span: Span
    size: int
    values: Values


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a container."""

    name: str
    dtype: str
    shape: Shape
    span: Span

    @property
    def part(self) -> Part:
        """What is needed to read the tensor."""
        return Part(self.name, self.span, math.prod(self.shape) * BITS[self.dtype] // 8, values_of(self.dtype))


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file in a container: its own bytes, and then its tensors. A file that has no weights has no tensors.

    `own_bytes` is the number of its own bytes. The own bytes of a safetensors file are its header.
    """

    name: str
    own_bytes: int
    span: Span
    tensors: tuple[TensorEntry, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The own bytes and the tensors, in their order in the file."""
        own = Part(self.name, self.span, self.own_bytes, FILE)
        return (own, *(tensor.part for tensor in self.tensors))

    @property
    def size(self) -> int:
        """Bytes of the file in the folder."""
        return sum(part.size for part in self.parts)


class Footer(NamedTuple):
    """Where the index is, and its SHA-256."""

    begin: int
    size: int
    sha256: bytes


def version_of(head: bytes) -> int | None:
    """Return the version of a container from its first 12 bytes, or None if they are not those of a container."""
    magic, version = head[:8], head[8:12]
    return int.from_bytes(version, "little") if magic == MAGIC and len(version) == 4 else None


def pack_footer(index: bytes, begin: int) -> bytes:
    """Return the last 64 bytes of a container, which follow the index."""
    return _FOOTER.pack(begin, len(index), hashlib.sha256(index).digest(), VERSION, MAGIC)


def parse_footer(content: bytes, size: int) -> Footer:
    """Return where the index of a container of `size` bytes is. Raises ValueError if it has no footer."""
    begin, length, digest, version, magic = _FOOTER.unpack(content)
    if magic != MAGIC:
        raise ValueError("the file does not end as a compact container does: it is incomplete or another file")
    if version != VERSION:
        raise ValueError(f"the version of the format must be {VERSION}; it is {version}")
    if begin + length + FOOTER_BYTES != size or begin < len(HEAD) or begin % ALIGNMENT or length > MAX_HEADERS_BYTES:
        raise ValueError(f"the index must be before the last {FOOTER_BYTES} bytes; it has {length} bytes from {begin}")
    return Footer(begin, length, digest)


def dump(files: Sequence[FileEntry]) -> bytes:
    """Return the index as JSON. Raises ContainerError if it is larger than a reader accepts."""
    content = json.dumps({"files": [_plain(file) for file in files]}, separators=(",", ":")).encode()
    items = sum(map(content.count, (b"{", b"[", b",")))
    if len(content) > MAX_HEADERS_BYTES or items > MAX_JSON_ITEMS:
        raise ContainerError(
            f"the index of a container may have at most {MAX_HEADERS_BYTES} bytes and {MAX_JSON_ITEMS} items; this one"
            f" has {len(content)} and {items}. The model has too many tensors; keep the folder instead."
        )
    return content


def parse(content: bytes, footer: Footer) -> tuple[FileEntry, ...]:
    """Return the files of a container. Raises ValueError if the index is damaged or does not fit the container."""
    if hashlib.sha256(content).digest() != footer.sha256:
        raise ValueError("the index must have the SHA-256 in the footer; it has another")
    try:
        files = tuple(map(_file, parse_json(content)["files"]))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"the index is malformed: {error!r}") from error
    _require_names(files)
    _require_order(files, footer.begin)
    tensors = [tensor for file in files for tensor in file.tensors]
    require_plausible(len(tensors), sum(math.prod(tensor.shape) for tensor in tensors))
    require_expansion(sum(file.size for file in files), footer.begin)
    return files


def require_expansion(size: int, stored: int) -> None:
    """Raise ValueError if a container of `stored` bytes claims a folder that is larger than any real model needs."""
    most = max(MIN_EXPANDED, MAX_EXPANSION * stored)
    if size > most:
        raise ValueError(f"a container of {stored} bytes may have a folder of at most {most} bytes; it has {size}")


def _plain(file: FileEntry) -> dict[str, Any]:
    tensors = [
        {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, **asdict(tensor.span)}
        for tensor in file.tensors
    ]
    return {"name": file.name, "own_bytes": file.own_bytes, **asdict(file.span), "tensors": tensors}


def _file(data: dict[str, Any]) -> FileEntry:
    name, own_bytes = data["name"], data["own_bytes"]
    require_path(name)
    if type(own_bytes) is not int or own_bytes < 0:
        raise ValueError(f"`own_bytes` of {name!r} must be an integer from 0")
    return FileEntry(name, own_bytes, _span(name, data), tuple(map(_tensor, data["tensors"])))


def _tensor(data: dict[str, Any]) -> TensorEntry:
    name, dtype = data["name"], data["dtype"]
    if type(name) is not str or dtype not in BITS:
        rule = "the name of a tensor must be a text and its dtype one of safetensors"
        raise ValueError(f"{rule}; the tensor {str(name)[:MAX_NAME]!r} has the dtype {str(dtype)[:MAX_NAME]!r}")
    shape = checked_shape(name, data["shape"])
    if math.prod(shape) * BITS[dtype] % 8:
        raise ValueError(f"the tensor {name!r} must have whole bytes; it has {math.prod(shape)} values of {dtype}")
    return TensorEntry(name, dtype, shape, _span(name, data))


def _span(name: str, data: dict[str, Any]) -> Span:
    begin, end, digest = data["begin"], data["end"], data["sha256"]
    if type(begin) is not int or type(end) is not int or type(digest) is not str:
        raise ValueError(f"`begin`, `end` and `sha256` of {name!r} must be two integers and a text")
    return Span(begin, end, digest)


def require_path(name: Any) -> None:
    """Raise ValueError unless a name is a plain path inside a folder, with slashes between its parts."""
    if type(name) is not str or not 0 < len(name) <= MAX_PATH:
        raise ValueError(f"the name of a file must be a text of 1 to {MAX_PATH} characters; one is {str(name)[:80]!r}")
    if "\\" in name or "\0" in name:
        raise ValueError(f"the name of a file must have no backslash and no NUL; one is {name[:80]!r}")
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"the name of a file must be a path inside the folder; one is {name[:80]!r}")
    if max(len(part.encode()) for part in parts) > MAX_PART:
        raise ValueError(f"each part of the name of a file may have at most {MAX_PART} bytes; one is {name[:80]!r}")
    if len(parts) > MAX_PARTS:
        raise ValueError(f"the name of a file may have at most {MAX_PARTS} parts; {name[:80]!r} has {len(parts)}")


def _require_names(files: Sequence[FileEntry]) -> None:
    """Raise ValueError if a name occurs twice, if a file is also a folder, or if the header of a file is too large."""
    names = {file.name for file in files}
    folders = ("/".join(parts[:end]) for name in names for parts in [name.split("/")] for end in range(1, len(parts)))
    if len(names) < len(files) or not names.isdisjoint(folders):
        raise ValueError("the files of a container must have different names, and none may have the name of a folder")
    for file in files:
        if file.tensors and file.own_bytes > 8 + MAX_FILE_BYTES:
            raise ValueError(f"the header of {file.name!r} may have at most {MAX_FILE_BYTES} bytes")
        if len({tensor.name for tensor in file.tensors}) < len(file.tensors):
            raise ValueError(f"the tensors of {file.name!r} must have different names")


def _require_order(files: Sequence[FileEntry], end: int) -> None:
    """Raise ValueError unless the parts follow each other without gaps, each with a possible number of bytes."""
    at = len(HEAD)
    for name, span, size, kind in (part for file in files for part in file.parts):
        if span.begin != at or not least_bytes(size, kind) <= span.end - at <= most_bytes(size, kind) or span.end % 64:
            raise ValueError(f"{name!r} with {size} bytes must begin at {at}; it is at {span.begin} to {span.end}")
        at = span.end
    if at != end:
        raise ValueError(f"the index must begin where the last tensor ends, at {at}; it begins at {end}")
