"""The key-value header of a GGUF file, read within bounds and without the weights.

The `gguf` package reads it too, but takes seconds for a vocabulary and trusts every length it meets; a server must
answer in milliseconds and may be shown any file. Arrays are skipped (only their lengths are kept): they hold the
vocabulary. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Value = int | float | bool | str
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_TYPE_AND_OFFSET = 12
"""Bytes that a tensor's type and place take behind its shape."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class _Cursor:
    """Reads forward through bytes; past the end or at an unknown type it raises ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def skip(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        start, end = self._at, self._at + size
        if end > len(self._data):
            raise ValueError("the header goes on after the end of the file")
        self._at = end
        return start

    def scalar(self, format_: str) -> Value:
        value: Value = struct.unpack_from(format_, self._data, self.skip(struct.calcsize(format_)))[0]
        return value

    def count(self) -> int:
        return int(self.scalar("<Q"))

    def string(self) -> str:
        size = self.count()
        start = self.skip(size)
        return self._data[start : start + size].decode("utf-8")

    def value(self, kind: int) -> Value:
        """One value; an array answers with its length."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"a value has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def _skip_array(self) -> int:
        kind, length = int(self.scalar("<I")), self.count()
        if kind in _SCALARS:
            self.skip(length * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(length):
                self.skip(self.count())
        else:
            raise ValueError(f"an array holds the type {kind}, which no model's header has")
        return length


def read_header(path: Path) -> dict[str, Value]:
    """All keys with their scalar values, an array's value being its length; ValueError where it is not readable."""
    with _opened(path) as (cursor, _):
        return _values(cursor)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, as torch has it: a linear is (outputs, inputs). ValueError as above."""
    with _opened(path) as (cursor, tensors):
        _values(cursor)
        return dict(_tensor(cursor) for _ in range(tensors))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Cursor, int]]:
    """A cursor at the keys, and how many tensors are told of behind them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if data[: cursor.skip(4) + 4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = cursor.scalar("<I")
        if version not in _VERSIONS:
            raise ValueError(f"it has version {version}, not 2 or 3")
        yield cursor, cursor.count()


def _values(cursor: _Cursor) -> dict[str, Value]:
    return {cursor.string(): cursor.value(int(cursor.scalar("<I"))) for _ in range(cursor.count())}


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...]]:
    name, dimensions = cursor.string(), int(cursor.scalar("<I"))
    shape = [cursor.count() for _ in range(dimensions)]
    cursor.skip(_TYPE_AND_OFFSET)
    return name, tuple(reversed(shape))
