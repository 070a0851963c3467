"""Rounding to a narrower dtype in which small changes count on average (Gupta et al. 2015, section 3)."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from seft.seeds import number

DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Number of mantissa bits of float32 that a narrower dtype lacks."""
_FACTORS = (-1640531527, -2048144789)
"""Odd numbers whose products spread the bits of a number (Knuth, The Art of Computer Programming, section 6.4)."""


def round_stochastically(
    values: Float[Tensor, "*shape"], dtype: torch.dtype, seed: int, name: str, first: int = 0
) -> Shaped[Tensor, "*shape"]:
    """Return the values in a narrower dtype, rounded up or down at random so that the expected result is the value.

    Overwrites `values`. A wider dtype needs no rounding. Zero stays zero. Values below the normal numbers of float16
    (6e-5) are rounded to the nearest number. The random numbers depend on `seed`, `name` and the index of each value.
    `first` is the index of the first value.
    """
    if dtype not in DROPPED_BITS:
        return values.to(dtype)
    indices = torch.arange(values.numel(), dtype=torch.int32, device=values.device).add_(signed(first))
    return _round(values, dtype, random_bits(indices.view(values.shape), number(seed, name)))


def random_bits(indices: Int[Tensor, "*shape"], seed: int) -> Int[Tensor, "*shape"]:
    """Return 32 random bits for each index, as int32. Overwrites `indices`.

    They are the hash lowbias32 of Chris Wellons' Hash Prospector, with a seed of 64 bits (`seft/native/matrix.h`).
    """
    bits = indices.bitwise_xor_(signed(seed))
    bits.bitwise_xor_(_shifted(bits, 16)).mul_(signed(0x7FEB352D)).bitwise_xor_(signed(seed >> 32))
    bits.bitwise_xor_(_shifted(bits, 15)).mul_(signed(0x846CA68B))
    return bits.bitwise_xor_(_shifted(bits, 16))


def signed(bits: int) -> int:
    """Return the number of int32 that has the lowest 32 bits of a whole number."""
    return (bits + (1 << 31)) % (1 << 32) - (1 << 31)


def _shifted(bits: Int[Tensor, "*shape"], places: int) -> Int[Tensor, "*shape"]:
    """Return the bits shifted right, with zeros from the left."""
    return (bits >> places).bitwise_and_((1 << 32 - places) - 1)


def round_by_hash(
    values: Float[Tensor, "values"],
    dtype: torch.dtype,
    labels: Float[Tensor, "values"],
    counts: Int[Tensor, "counts"],
) -> Shaped[Tensor, "values"]:
    """Return the values in a narrower dtype like `round_stochastically`, but with hashes as random numbers.

    Overwrites `values`. A hash depends on the bits of the value, on a float32 label, and on a count. `counts` has one
    number per value, or one for all. So the result does not depend on the order of the values. A different count or
    label can change the direction in which the same value is rounded.
    """
    random = (counts.int() * _FACTORS[0]).bitwise_xor(labels.view(torch.int32)).mul_(_FACTORS[1])
    random.bitwise_xor_(random >> 15)
    return _round(values, dtype, random.bitwise_xor_(values.view(torch.int32)).mul_(_FACTORS[0]) >> 16)


def _round(
    values: Float[Tensor, "*shape"], dtype: torch.dtype, random: Int[Tensor, "*shape"]
) -> Shaped[Tensor, "*shape"]:
    """Round by numbers whose lowest 16 bits are random. Overwrites both tensors."""
    # Adding random bits below the last kept bit, and then clearing those bits, rounds up with the right probability.
    raw, bits = values.view(torch.int32), DROPPED_BITS[dtype]
    raw.add_(random.bitwise_and_((1 << bits) - 1)).bitwise_and_(-1 << bits)
    return values.to(dtype)
