"""Codes the byte planes of a chunk. A plane has one byte of every value, or the bits of the mask.

There are three codes. zstd is used almost without matches: weights repeat no sequences, so a match that is found by
chance costs more bits than the entropy code of zstd. A code symbol of zstd has at least one bit. Exponents of pruned
weights have less than two bits of entropy, so they are coded in pairs, which halves the loss by whole bits.
"""

import sys
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Stored = bytes | memoryview

COMMON = 15
"""Number of byte values that have their own code in a pair code. Code 15 stands for any other value."""
_ESCAPE = 15
_WINDOW_LOG = 23
"""Binary logarithm of the largest window that a reader accepts. A plane has at most 2 MiB before zstd."""
_Parameter = zstd.CompressionParameter
ENTROPY_ONLY: Mapping[int, int] = {
    _Parameter.compression_level: 1,
    _Parameter.strategy: zstd.Strategy.fast,
    _Parameter.min_match: 7,
    _Parameter.hash_log: 6,
    _Parameter.window_log: 20,
}
"""For planes of weights."""
TEXT: Mapping[int, int] = {_Parameter.compression_level: 3}
"""For files without weights, and for the header of a safetensors file."""


class Code(IntEnum):
    """How the bytes of a plane are stored. `docs/compact-format.md` defines each code."""

    RAW = 0
    ZSTD = 1
    PAIRS = 2


def encode(plane: Bytes, options: Mapping[int, int]) -> tuple[Code, bytes]:
    """Return the shortest code of a plane, and its stored bytes. They never have more bytes than the plane."""
    raw = plane.tobytes()
    stored = zstd.compress(raw, options=options)
    return (Code.ZSTD, stored) if len(stored) < len(raw) else (Code.RAW, raw)


def encode_frequent(plane: Bytes) -> tuple[Code, bytes]:
    """Return the pair code of a plane in which few byte values are frequent, or the plane itself if that is shorter.

    Returns the result of `encode` for any other plane.
    """
    counts = np.bincount(plane, minlength=256)
    table = np.argsort(-counts, kind="stable")[:COMMON].astype(np.uint8)
    if len(plane) - int(counts[table].sum()) > len(plane) >> 6:
        return encode(plane, ENTROPY_ONLY)
    codes = np.full(256, _ESCAPE, np.uint8)
    codes[table] = np.arange(COMMON, dtype=np.uint8)
    even = np.append(plane, table[0]) if len(plane) % 2 else plane
    # The value with the even number is in the lower half of a pair, here and in the packed byte.
    pair_codes = (codes[None, :] | codes[:, None] << 4).reshape(-1)
    packed = pair_codes.take(even.view("<u2"))
    escaped = plane[codes.take(plane) == _ESCAPE] if counts[codes == _ESCAPE].any() else plane[:0]
    stored = zstd.compress(b"".join([table.tobytes(), packed.tobytes(), escaped.tobytes()]), options=ENTROPY_ONLY)
    return (Code.PAIRS, stored) if len(stored) < len(plane) else (Code.RAW, plane.tobytes())


def decode(code: int, stored: Stored, size: int) -> Bytes:
    """Return a plane of `size` bytes. Raises ValueError if the stored bytes are not a plane of this size."""
    match code:
        case Code.RAW:
            plane = np.frombuffer(stored, np.uint8)
        case Code.ZSTD:
            plane = np.frombuffer(_decompress(stored, size), np.uint8)
        case Code.PAIRS:
            plane = _decode_pairs(stored, size)
        case _:
            raise ValueError(f"the code of a plane must be 0, 1 or 2; one is {code}")
    if len(plane) != size:
        raise ValueError(f"a plane must have {size} bytes; one has {len(plane)}")
    return plane


def _decode_pairs(stored: Stored, size: int) -> Bytes:
    halves = -(-size // 2)
    content = np.frombuffer(_decompress(stored, COMMON + halves + size), np.uint8)
    if len(content) < COMMON + halves:
        raise ValueError(f"a plane of pairs must have {COMMON + halves} bytes or more; one has {len(content)}")
    table, packed, escaped = np.split(content, [COMMON, COMMON + halves])
    values = np.append(table, np.uint8(0)).astype(np.uint16)
    pairs = (values[None, :] | values[:, None] << 8).reshape(-1)
    plane = pairs.take(packed).astype("<u2", copy=False).view(np.uint8)[:size]
    places = _escapes(packed, size)
    if len(places) != len(escaped):
        raise ValueError(f"a plane must have {len(places)} bytes outside of its table; one has {len(escaped)}")
    if len(places):
        plane[places] = escaped
    return plane


def _escapes(packed: Bytes, size: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the places of the values that have the code 15."""
    low, high = packed & 15 == _ESCAPE, packed >> 4 == _ESCAPE
    if not low.any() and not high.any():
        return np.empty(0, np.intp)
    return np.flatnonzero(np.stack([low, high], axis=1).reshape(-1)[:size])


def _decompress(stored: Stored, most: int) -> bytes:
    """Return the content of one zstd frame of at most `most` bytes. Raises ValueError if it is anything else."""
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    try:
        content = decompressor.decompress(stored, max_length=most + 1)
    except zstd.ZstdError as error:
        raise ValueError(f"a plane cannot be decompressed ({error})") from error
    if not decompressor.eof or decompressor.unused_data or len(content) > most:
        raise ValueError(f"a plane must be one whole zstd frame of at most {most} bytes; one is not")
    return content
