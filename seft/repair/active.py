"""The active set of one linear: the few positions of its weight that are trained, and all that training keeps of them.

Nothing here knows a gradient or a schedule.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.dtypes import master_dtype
from seft.errors import ConfigError
from seft.repair.positions import Former, entries, put

LARGEST_POSITION = torch.iinfo(torch.int32).max


@dataclass(frozen=True, slots=True)
class Active(Former):
    """`values` are the masters, in float32 or wider; the weight holds them rounded to its own dtype.

    `bases` are what the weight held when each position became active, bit for bit. `means` and `squares` are Adam's
    moments, `ages` the number of gradients in them.
    """

    values: Float[Tensor, "positions"]
    means: Float[Tensor, "positions"]
    squares: Float[Tensor, "positions"]
    ages: Int[Tensor, "positions"]

    @classmethod
    def start(cls, weight: Float[Tensor, "rows cols"], indices: Int[Tensor, "positions"]) -> "Active":
        """Positions at their present values, with no memory of any gradient."""
        bases = entries(weight, indices)
        values = bases.to(master_dtype(weight.dtype), copy=True)
        means, squares = torch.zeros_like(values), torch.zeros_like(values)
        return cls(indices, bases, values, means, squares, torch.zeros_like(indices, dtype=torch.int16))

    @property
    def deltas(self) -> Float[Tensor, "positions"]:
        """How far each value is from its base."""
        return self.values - self.bases

    def write(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Round the values into the weight, in place."""
        put(weight, self.indices, self.values.to(weight.dtype))


def spread(weight: Float[Tensor, "rows cols"], count: int, generator: torch.Generator) -> Int[Tensor, "positions"]:
    """Sorted positions of `count` nonzeros, drawn one from each `count`-th part of them."""
    if weight.numel() > LARGEST_POSITION:
        rule = f"may have no linear of more than {LARGEST_POSITION} weights"
        raise ConfigError("model", rule, tuple(weight.shape), "Positions are kept as int32: split this linear.")
    nonzeros = weight.flatten().nonzero().squeeze(1)
    bounds = torch.arange(count + 1) * len(nonzeros) // max(count, 1)
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    ranks = bounds[:-1] + (draws * bounds.diff()).long()
    return nonzeros[ranks.to(weight.device)].int()
