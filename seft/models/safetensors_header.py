"""Reads the header of a safetensors file without its weights, and checks it as strictly as the library safetensors.

The library needs the whole file. A server has only the header, from a hub or a bucket. A shape that the file cannot
contain is rejected, so all later numbers are bounded by the size of the file. Format:
github.com/huggingface/safetensors#format.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from seft.models.limits import (
    MAX_FILE_BYTES,
    MAX_HEADERS_BYTES,
    MAX_TENSORS,
    checked_shape,
    parse_json,
    require_plausible,
)

Shape = tuple[int, ...]
_METADATA = "__metadata__"
PREFIX_BYTES = 8
_FIRST_READ = 1 << 16
"""Bytes of the first read. Most headers are smaller, so they need no second read."""
_DTYPES = (
    (4, ("F4",)),
    (6, ("F6_E2M3", "F6_E3M2")),
    (8, ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")),
    (16, ("I16", "U16", "F16", "BF16")),
    (32, ("I32", "U32", "F32")),
    (64, ("I64", "U64", "F64", "C64")),
)
BITS = {dtype: bits for bits, dtypes in _DTYPES for dtype in dtypes}
"""Bits per value, by the name of the dtype."""


class Tensor(NamedTuple):
    """The dtype and the shape of one tensor, and its first byte in the file and the byte after its last one."""

    dtype: str
    shape: Shape
    begin: int
    end: int


class Header(NamedTuple):
    """The tensors of one file by name, the bytes of the header, and the metadata."""

    tensors: dict[str, Tensor]
    bytes: int
    metadata: Mapping[str, str] = MappingProxyType({})

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the tensors by name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def read_header(read: Callable[[int, int], bytes], file_bytes: int) -> Header:
    """Return the header of a file of `file_bytes` bytes. `read(start, size)` returns at most `size` of its bytes.

    Raises ValueError if the header is malformed or does not fit the file.
    """
    first = read(0, min(_FIRST_READ, file_bytes))
    if len(first) < PREFIX_BYTES:
        raise ValueError(f"a safetensors file must have at least {PREFIX_BYTES} bytes; this one has {len(first)}")
    (size,) = struct.unpack_from("<Q", first)
    end, largest = PREFIX_BYTES + size, min(MAX_FILE_BYTES, file_bytes - PREFIX_BYTES)
    if not 0 < size <= largest:
        raise ValueError(f"a safetensors header must have 1 to {largest} bytes here; this one has {size}")
    content = first[PREFIX_BYTES:end] if end <= len(first) else read(PREFIX_BYTES, size)
    if len(content) != size:
        raise ValueError(f"the header must have {size} bytes; only {len(content)} could be read")
    try:
        tensors, metadata = _parse(content, end, file_bytes - end)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"the header is malformed: {error!r}") from error
    return Header(tensors, size, metadata)


def read_metadata(header: bytes) -> dict[str, Any]:
    """Return the metadata of a file from the bytes of its valid header, with the size in front. Empty if none."""
    return json.loads(header[PREFIX_BYTES:]).get(_METADATA) or {}


def make_header(
    tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, Any]
) -> tuple[bytes, dict[str, Tensor]]:
    """Return the header of a file in which these tensors follow each other, and the places of the tensors in the file.

    `tensors` has the dtype and the shape of each tensor by name. The header begins with its size.
    """
    at, spans = 0, dict[str, tuple[int, int]]()
    for name, (dtype, shape) in tensors.items():
        spans[name] = at, at + math.prod(shape) * BITS[dtype] // 8
        at = spans[name][1]
    entries: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    for name, (dtype, shape) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(spans[name])}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    return header, {
        name: Tensor(dtype, tuple(shape), *(len(header) + end for end in spans[name]))
        for name, (dtype, shape) in tensors.items()
    }


def merge(headers: Iterable[Header]) -> dict[str, Shape]:
    """Return the shapes of all files of a model. Raises ValueError as soon as the files exceed a limit together."""
    merged: dict[str, Shape] = {}
    total = parameters = 0
    for header in headers:
        merged |= header.shapes
        total, parameters = (
            total + header.bytes,
            parameters + sum(math.prod(each.shape) for each in header.tensors.values()),
        )
        if total > MAX_HEADERS_BYTES:
            raise ValueError(f"all headers of a model may have at most {MAX_HEADERS_BYTES} bytes together")
        require_plausible(len(merged), parameters)
    return merged


def _parse(content: bytes, start: int, data_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a header. The data begin at the byte `start` of the file."""
    header = parse_json(content)
    if not isinstance(header, dict):
        raise ValueError("a safetensors header must be a JSON object")
    if (metadata := header.pop(_METADATA, None)) is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise ValueError("the metadata of a safetensors file must be an object of texts")
    if len(header) > MAX_TENSORS:
        raise ValueError(f"a model may have at most {MAX_TENSORS} tensors; this file has {len(header)}")
    shapes = {name: checked_shape(name, entry["shape"]) for name, entry in header.items()}
    spans = {name: _span(name, shapes[name], entry) for name, entry in header.items()}
    _require_cover(list(spans.values()), data_bytes)
    tensors = {
        name: Tensor(str(header[name]["dtype"]), shapes[name], start + begin, start + end)
        for name, (begin, end) in spans.items()
    }
    return tensors, metadata


def _span(name: str, shape: Shape, entry: dict[str, Any]) -> tuple[int, int]:
    """Return the first byte of a tensor and the byte after its last one, both relative to the end of the header.

    Raises ValueError if the shape of the tensor needs another number of bytes.
    """
    begin, end = entry["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise ValueError(f"`data_offsets` must be two integers; in {name!r} they are not")
    if (dtype := str(entry["dtype"])) not in BITS:
        raise ValueError(f"the dtype of a tensor must be one of {', '.join(BITS)}; for {name!r} it is {dtype[:20]!r}")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (end - begin):
        needed, has = bits / 8, end - begin
        raise ValueError(f"{name!r} of shape {list(shape)} needs {needed:.0f} bytes, but its `data_offsets` have {has}")
    return begin, end


def _require_cover(spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Raise ValueError unless the tensors fill the file without gaps and without common bytes."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError(f"each tensor must begin where another ends; none begins at byte {at} of the data")
        at = end
    if at != data_bytes:
        raise ValueError(f"the tensors have {at} bytes, but the file has {data_bytes} bytes of data; it is incomplete")
