"""Turns a chunk into stored bytes and back. A chunk has up to 2^20 consecutive values of a tensor or bytes of a file.

A chunk is coded on its own, so chunks are written and read in parallel, and memory does not depend on the size of a
tensor. Every chunk is restored bit for bit: a value is left out only if all its bits are 0, so -0.0 is kept.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from seft.checkpoint.compact import planes
from seft.checkpoint.compact.planes import Bytes, Code, Stored
from seft.models.safetensors_header import BITS

VALUES = 1 << 20
"""Number of values in a chunk of a tensor. The last chunk may have fewer."""
ALIGNMENT = 64
_PLANES = 9
"""Largest number of planes: the mask, and one for each byte of a value."""
_HEADER = struct.Struct(f"<II{_PLANES}I{_PLANES}B11x")
_MASKED = 16
"""A mask is used if at least one value in 16 is zero. With fewer zeros, storing the zeros as values takes less space
than a mask."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


class Values(NamedTuple):
    """How the values of a dtype are coded: bytes per value, and whether the sign bit becomes the lowest bit."""

    bytes: int
    rotated: bool
    is_text: bool = False

    @property
    def narrow(self) -> int | None:
        """The number of the plane in which a few bytes may be much more frequent than others, or None.

        For BF16 and F32 it is the plane with the exponents. For weights of one byte it is the only plane.
        """
        exponents = self.rotated and self.bytes in {2, 4}
        return self.bytes - 1 if exponents or (self.bytes == 1 and not self.is_text) else None


FILE = Values(1, rotated=False, is_text=True)
"""For files without weights, and for the header of a safetensors file."""


class Packed(NamedTuple):
    """The values of a chunk that are stored, and the mask of their places. The mask is None if all values are stored.

    `total` is the number of values. `mask` has one bit per value; the first value has the lowest bit. `kept` are
    unsigned integers with the bits of the stored values.
    """

    total: int
    mask: Bytes | None
    kept: np.ndarray[Any, Any]


def values_of(dtype: str) -> Values:
    """Return how the values of a dtype of safetensors are coded. Dtypes of fewer than 8 bits are coded as bytes."""
    return Values(max(BITS[dtype] // 8, 1), dtype in _FLOATS)


def chunk_sizes(size: int, values: Values) -> Iterator[int]:
    """Yield the size in bytes of each chunk of a tensor or file of `size` bytes."""
    whole = VALUES * values.bytes
    for start in range(0, size, whole):
        yield min(whole, size - start)


def least_bytes(size: int, values: Values) -> int:
    """Return the fewest bytes that the chunks of `size` bytes can have in a container."""
    return ALIGNMENT * -(-size // (VALUES * values.bytes))


def most_bytes(size: int, values: Values) -> int:
    """Return the most bytes that the chunks of `size` bytes can have in a container."""
    return size + size // (8 * values.bytes) + (_PLANES + 2) * least_bytes(size, values)


def encode(data: bytes, values: Values) -> bytes:
    """Return the stored bytes of a chunk. Their number is a multiple of 64."""
    bits = np.frombuffer(data, _UNSIGNED[values.bytes])
    packed = pack(bits)
    stored = [(Code.RAW, b"")] if packed.mask is None else [planes.encode(packed.mask, planes.ENTROPY_ONLY)]
    options = planes.TEXT if values.is_text else planes.ENTROPY_ONLY
    for number, plane in enumerate(_split(packed.kept, values)):
        stored.append(planes.encode_frequent(plane) if number == values.narrow else planes.encode(plane, options))
    stored += [(Code.RAW, b"")] * (_PLANES - len(stored))
    header = _HEADER.pack(
        len(bits), len(packed.kept), *(len(content) for _, content in stored), *(code for code, _ in stored)
    )
    return b"".join([header, *(_padded(content) for _, content in stored)])


def pack(bits: np.ndarray[Any, Any]) -> Packed:
    """Separate the values of a chunk from their places, if enough of them are zero."""
    nonzero = bits != 0
    kept = int(np.count_nonzero(nonzero))
    if (len(bits) - kept) * _MASKED < len(bits) or not len(bits):
        return Packed(len(bits), None, bits)
    # Much faster than indexing with `nonzero`.
    return Packed(len(bits), np.packbits(nonzero, bitorder="little"), bits.take(np.flatnonzero(nonzero)))


def stored_bytes(header: Stored) -> int:
    """Return the number of bytes of a chunk, from its first 64 bytes. Raises ValueError if it is implausible."""
    count, kept, *rest = _HEADER.unpack(header)
    lengths: list[int] = rest[:_PLANES]
    if not 0 < count <= VALUES or kept > count or max(lengths) > VALUES:
        raise ValueError("the header of a chunk has impossible numbers")
    return ALIGNMENT + sum(length + -length % ALIGNMENT for length in lengths)


def decode(stored: Stored, size: int, values: Values) -> Bytes:
    """Return the `size` bytes of a chunk. Raises ValueError if the stored bytes are not a chunk of this size."""
    return unpack(read(stored, size, values))


def unpack(packed: Packed) -> Bytes:
    """Return the bytes of the values of a chunk, with the zeros in their places."""
    if packed.mask is None:
        return packed.kept.view(np.uint8)
    bits = np.zeros(packed.total, packed.kept.dtype)
    bits[np.flatnonzero(_unpacked(packed.mask, packed.total))] = packed.kept
    return bits.view(np.uint8)


def read(stored: Stored, size: int, values: Values) -> Packed:
    """Return the mask and the values of a chunk of `size` bytes. Raises ValueError if it is not a chunk."""
    count, kept, *rest = _HEADER.unpack_from(stored)
    if count * values.bytes != size:
        raise ValueError(f"a chunk must have {size // values.bytes} values here; one has {count}")
    lengths, first = rest[:_PLANES], 0 if kept < count else 1
    if any(lengths[:first]) or any(lengths[1 + values.bytes :]):
        raise ValueError("a plane that a chunk does not have must have 0 bytes; one has more")
    contents = list(_contents(stored, lengths, rest[_PLANES:]))
    mask = None
    if kept < count:
        mask = planes.decode(*contents[0], -(-count // 8))
        if np.count_nonzero(_unpacked(mask, count)) != kept:
            raise ValueError(f"a mask must have {kept} bits that are 1; one has another number")
    return Packed(count, mask, _join([planes.decode(*each, kept) for each in contents[1 : 1 + values.bytes]], values))


def _unpacked(mask: Bytes, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.unpackbits(mask, count=count, bitorder="little").view(np.bool_)


def _contents(stored: Stored, lengths: list[int], codes: list[int]) -> Iterator[tuple[int, Stored]]:
    at = ALIGNMENT
    for length, code in zip(lengths, codes, strict=True):
        yield code, stored[at : at + length]
        at += length + -length % ALIGNMENT
    if at != len(stored):
        raise ValueError(f"a chunk must have {at} bytes; it has {len(stored)}")


def _split(kept: np.ndarray[Any, Any], values: Values) -> list[Bytes]:
    """Return the bytes of the values as planes, the plane of the lowest byte first."""
    top = 8 * values.bytes - 1
    bits = kept << 1 | kept >> top if values.rotated else kept
    return [(bits >> 8 * number).astype(np.uint8) for number in range(values.bytes)]


def _join(parts: list[Bytes], values: Values) -> np.ndarray[Any, Any]:
    dtype, top = _UNSIGNED[values.bytes], 8 * values.bytes - 1
    bits: np.ndarray[Any, Any] = parts[0].astype(dtype)
    for number, part in enumerate(parts[1:], start=1):
        bits |= part.astype(dtype) << 8 * number
    return bits >> 1 | bits << top if values.rotated else bits


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)
