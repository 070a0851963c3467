"""Values of bfloat16 as NumPy arrays of their bits, because NumPy has no such dtype."""

from typing import Any

import numpy as np

Bits = np.ndarray[Any, np.dtype[np.uint16]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


def to_float32(bits: Bits) -> Floats:
    """Return the values of bfloat16 bits. -0.0 becomes 0.0."""
    return (bits.astype(np.uint32) << 16).view(np.float32) + np.float32(0)


def to_bfloat16(values: Floats) -> Bits:
    """Return the bits of finite values rounded to bfloat16: to the nearest, ties to even, as torch does."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
