"""Rounding to a narrower dtype in which small changes count on average (Gupta et al. 2015, section 3)."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from seft.seeds import generator

DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Number of mantissa bits of float32 that a narrower dtype lacks."""
_FACTORS = (-1640531527, -2048144789)
"""Odd numbers whose products spread the bits of a number (Knuth, The Art of Computer Programming, section 6.4)."""


def round_stochastically(
    values: Float[Tensor, "*shape"], dtype: torch.dtype, seed: int, name: str
) -> Shaped[Tensor, "*shape"]:
    """Return the values in a narrower dtype, rounded up or down at random so that the mean of the result is the value.

    Overwrites `values`. A wider dtype needs no rounding. Zero stays zero. Values below the normal numbers of float16
    (6e-5) are rounded to the nearest number. `seed` and `name` set the random numbers.
    """
    if dtype not in DROPPED_BITS:
        return values.to(dtype)
    raw = values.view(torch.int32)
    return _round(values, dtype, _random_bits(raw, seed, name))


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
    # Adding a random number below the last kept bit and cutting the rest off carries with the right probability.
    raw, bits = values.view(torch.int32), DROPPED_BITS[dtype]
    raw.add_(random.bitwise_and_((1 << bits) - 1)).bitwise_and_(-1 << bits)
    return values.to(dtype)


def _random_bits(like: Int[Tensor, "*shape"], seed: int, name: str) -> Int[Tensor, "*shape"]:
    """Return whole numbers whose lowest 16 bits are random, four of them from each number drawn."""
    drawn = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    halves = drawn.random_(-(1 << 63), None, generator=generator(seed, name, like.device)).view(torch.int32)
    return torch.cat([halves, halves >> 16])[: like.numel()].view(like.shape)
