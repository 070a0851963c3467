"""SPP (Lu et al. 2024, arXiv 2405.16057): scale every nonzero weight, `W = W0 * (1 + 2 * alpha * beta)`.

Each row of `alpha` (rank, cols) is shared by a group of neighbouring rows of W. `beta` has one entry per row of W.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seft.repair.dense_change import DenseChange, Formula, Rows
from seft.repair.sampled import product_rows, row_chunks
from seft.repair.values import Vector

SCALE = 2.0
"""Factor 2 in the formula; the same for every rank."""


class Scaling(Formula):
    """The formula of SPP. The trained vector has the entries of `alpha`, then those of `beta`.

    If the rank does not divide the number of rows, some groups have one row more.
    """

    def initial(self, generator: torch.Generator) -> Vector:
        """Return the vector with `alpha` uniform within +-1 / sqrt(cols), as in the published code, and `beta` zero."""
        first = torch.rand(self.rank * self.cols, generator=generator) * 2 - 1
        return torch.cat([first * self.cols**-0.5, torch.zeros(self.rows if self.rank else 0)])

    def change(self, values: Vector, base: Rows, rows: slice) -> Rows:
        """Return the change of these rows of the weight matrix."""
        alpha, beta = self._factors(values)
        return (self._groups(rows, values) @ alpha).mul_(base).mul_(SCALE * beta[rows, None])

    def gradient(
        self,
        values: Vector,
        base: Float[Tensor, "rows cols"],
        left: Float[Tensor, "tokens rows"],
        right: Float[Tensor, "tokens cols"],
    ) -> Vector:
        """Return the gradient of the vector, computed for a few rows at a time."""
        pulled = torch.zeros_like(values)
        (alpha, beta), (of_alpha, of_beta) = self._factors(values), self._factors(pulled)
        for rows in row_chunks(base.shape):
            groups = self._groups(rows, values)
            scaled = product_rows(left, right, rows).mul_(base[rows]).mul_(SCALE)
            of_alpha.addmm_((groups * beta[rows, None]).t(), scaled)
            of_beta[rows] = scaled.mul_(groups @ alpha).sum(1)
        return pulled

    def _factors(self, values: Vector) -> tuple[Float[Tensor, "rank cols"], Float[Tensor, "rows"]]:
        end = self.rank * self.cols
        return values[:end].view(self.rank, self.cols), values[end:]

    def _groups(self, rows: slice, like: Tensor) -> Float[Tensor, "chunk rank"]:
        """Return, for each of these rows, a one-hot vector of the row of `alpha` that it uses."""
        numbers = torch.arange(rows.start, rows.stop, device=like.device) * self.rank // self.rows
        return F.one_hot(numbers, self.rank).to(like.dtype)


class SPP(DenseChange):
    """Trains the vectors `alpha` and `beta` of every target."""

    formula = Scaling
