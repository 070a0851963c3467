"""The active positions of one linear: the few entries of its weight matrix that are trained, with optimizer state.

Computes no gradients, and does not choose positions for topology events.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.dtypes import master_dtype, moment_dtype
from seft.fit import require_positions
from seft.repair.positions import BasePositions, entries, put


@dataclass(frozen=True, slots=True)
class Active(BasePositions):
    """Active positions of one weight matrix, with their values and optimizer state.

    `values` are the trained values, in float32 or wider; the matrix has them rounded to its own dtype. `bases` are the
    exact entries of the matrix from when each position became active. `means` and `squares` are Adam's moments, in
    bfloat16 if the matrix has 16 bits per entry. `ages` are the numbers of gradients in the moments. A position takes
    16 bytes for a matrix with 16 bits per entry, and 22 bytes for a float32 matrix.
    """

    values: Float[Tensor, "positions"]
    means: Float[Tensor, "positions"]
    squares: Float[Tensor, "positions"]
    ages: Int[Tensor, "positions"]

    @classmethod
    def start(cls, weight: Float[Tensor, "rows cols"], indices: Int[Tensor, "positions"]) -> "Active":
        """Return newly trained positions: value and base are the current weight, the optimizer's moments are zero."""
        bases = entries(weight, indices)
        values = bases.to(master_dtype(weight.dtype), copy=True)
        means = torch.zeros_like(values, dtype=moment_dtype(weight.dtype))
        return cls(indices, bases, values, means, means.clone(), torch.zeros_like(indices, dtype=torch.int16))

    @property
    def deltas(self) -> Float[Tensor, "positions"]:
        """Differences between the values and their bases."""
        return self.values - self.bases

    def write(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Write the values into the weight matrix, rounded to its dtype."""
        put(weight, self.indices, self.values)


def in_one_buffer(lists: Sequence[Active]) -> tuple[Active, list[Active]]:
    """Copy several lists into one buffer per field. Returns all positions in this order, and each list as a slice.

    The lists belong to several matrices, so all positions together are neither sorted nor unique.
    """
    buffers = [torch.cat(field) for field in zip(*(each.tensors().values() for each in lists), strict=True)]
    slices = zip(*(torch.split(buffer, [len(each) for each in lists]) for buffer in buffers), strict=True)
    return Active(*buffers), [Active(*tensors) for tensors in slices]


def sample_nonzeros(
    weight: Float[Tensor, "rows cols"], count: int, generator: torch.Generator
) -> Int[Tensor, "positions"]:
    """Return the sorted positions of `count` nonzeros, one drawn from each of `count` equal parts of all nonzeros.

    Raises ConfigError if the weight matrix is too large for int32 positions.
    """
    require_positions((weight.shape[0], weight.shape[1]))
    nonzeros = weight.flatten().nonzero().squeeze(1)
    bounds = torch.arange(count + 1) * len(nonzeros) // max(count, 1)
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    ranks = bounds[:-1] + (draws * bounds.diff()).long()
    return nonzeros[ranks.to(weight.device)].int()
