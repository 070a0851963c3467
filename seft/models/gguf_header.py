"""Reads the key-value header of a GGUF file without its weights, and checks every length before use.

The package `gguf` also reads the header, but it needs seconds for a vocabulary and trusts every length in the file. A
server must answer in milliseconds and may get any file. Arrays contain the vocabulary, so they are skipped, and only
their lengths are returned. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import math
import mmap
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from seft.models.limits import (
    MAX_DIMENSIONS,
    MAX_HEADERS_BYTES,
    MAX_TENSORS,
    checked_shape,
    require_plausible,
)

Value = int | float | bool | str
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FLOAT32 = 0
"""Type of a tensor of float32 values."""
_ALIGNMENT = 32
"""The values of tensors begin at a multiple of this number if the header has no `general.alignment`."""
MAX_VECTOR = 65_536
"""Largest number of values of a vector that is read."""
MAX_KEYS = 10_000
MAX_TEXTS = 4_000_000
"""Largest number of texts in all arrays together. The largest vocabularies have 300,000."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class _Tensor(NamedTuple):
    """The shape, the type and the offset of a tensor. The offset is in bytes from where the values begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class _Cursor:
    """Reads forward through bytes. Raises ValueError if it passes the end of the data or meets an unknown type."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._position = data, 0
        self._bytes_left, self._texts_left = MAX_HEADERS_BYTES, MAX_TEXTS

    def skip(self, size: int) -> int:
        """Move forward by `size` bytes. Returns the position before the move."""
        start, end = self._position, self._position + size
        if end > len(self._data):
            raise ValueError("the header continues past the end of the file; the file is probably incomplete")
        self._position = end
        return start

    def scalar(self, format_: str) -> Value:
        value: Value = struct.unpack_from(format_, self._data, self.skip(struct.calcsize(format_)))[0]
        return value

    def count(self) -> int:
        return int(self.scalar("<Q"))

    def string(self) -> str:
        size = self.count()
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"the texts of a header may have at most {MAX_HEADERS_BYTES} bytes together")
        start = self.skip(size)
        return self._data[start : start + size].decode("utf-8")

    def value(self, kind: int) -> Value:
        """Return the next value, which has the GGUF type `kind`. For an array, return its length."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"the header has a value of unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def vector(self, name: str, tensor: _Tensor, begin: int) -> tuple[float, ...]:
        """Return the values of a vector. The values of all tensors begin at `begin`."""
        if tensor.kind != _FLOAT32 or len(tensor.shape) != 1 or not 0 < tensor.shape[0] <= MAX_VECTOR:
            raise ValueError(f"`{name}` must be a float32 vector of at most {MAX_VECTOR} values")
        self._position = begin + tensor.offset
        size = tensor.shape[0]
        return struct.unpack_from(f"<{size}f", self._data, self.skip(4 * size))

    def _skip_array(self) -> int:
        kind, length = int(self.scalar("<I")), self.count()
        if kind in _SCALARS:
            self.skip(length * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING and length <= self._texts_left:
            self._texts_left -= length
            for _ in range(length):
                self.skip(self.count())
        else:
            raise ValueError(f"the header has an array of {length} items of type {kind}, which is not supported")
        return length


def read_header(path: Path, vectors: Collection[str]) -> tuple[dict[str, Value], dict[str, tuple[float, ...]]]:
    """Return all keys with their values, and the values of the tensors with the names `vectors` that the file has.

    The value of an array is its length. Raises ValueError if the file is not readable GGUF, or if one of these tensors
    is not a float32 vector.
    """
    with _open(path) as (cursor, tensors):
        keys = _values(cursor)
        found = {name: each for name, each in _tensors(cursor, tensors).items() if name in vectors}
        alignment = keys.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"`general.alignment` must be a number of bytes; it is {alignment!r}")
        begin = cursor.skip(0)
        begin += -begin % alignment
        return keys, {name: cursor.vector(name, each, begin) for name, each in found.items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name, in the order of torch: (outputs, inputs).

    Raises ValueError if the file is not readable GGUF.
    """
    with _open(path) as (cursor, tensors):
        _values(cursor)
        shapes = {name: each.shape for name, each in _tensors(cursor, tensors).items()}
    parameters = sum(map(math.prod, shapes.values()))
    require_plausible(len(shapes), parameters)
    # Every type of GGUF needs more than one bit per value.
    if parameters > 8 * path.stat().st_size:
        raise ValueError("the tensors have more values than the file can contain; it is incomplete")
    return shapes


@contextmanager
def _open(path: Path) -> Iterator[tuple[_Cursor, int]]:
    """Yield a cursor at the first key, and the number of tensors that follow the keys."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if data[: cursor.skip(4) + 4] != _MAGIC:
            raise ValueError("it must begin with the bytes GGUF")
        version = cursor.scalar("<I")
        if version not in _VERSIONS:
            raise ValueError(f"its version must be 2 or 3; it is {version}")
        yield cursor, cursor.count()


def _values(cursor: _Cursor) -> dict[str, Value]:
    keys = cursor.count()
    if keys > MAX_KEYS:
        raise ValueError(f"a header may have at most {MAX_KEYS} keys; this one has {keys}")
    return {cursor.string(): cursor.value(int(cursor.scalar("<I"))) for _ in range(keys)}


def _tensors(cursor: _Cursor, number: int) -> dict[str, _Tensor]:
    if number > MAX_TENSORS:
        raise ValueError(f"a model may have at most {MAX_TENSORS} tensors; this file has {number}")
    return dict(_tensor(cursor) for _ in range(number))


def _tensor(cursor: _Cursor) -> tuple[str, _Tensor]:
    name, dimensions = cursor.string(), int(cursor.scalar("<I"))
    shape = [cursor.count() for _ in range(min(dimensions, MAX_DIMENSIONS + 1))]
    return name, _Tensor(checked_shape(name, shape[::-1]), int(cursor.scalar("<I")), cursor.count())
