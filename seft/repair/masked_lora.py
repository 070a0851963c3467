"""LoRA under the mask: `W = W0 + 2 * mask(B A)`, as in SQFT's SparsePEFT (arXiv 2410.03750) and LoRS (2501.08582)."""

import torch
from jaxtyping import Float
from torch import Tensor

from seft.repair.dense_change import DenseChange, Rows
from seft.repair.ranks import Shape

SCALE = 2.0
"""Scale of the product `B A`, which LoRA calls alpha / r; the same for every rank."""


class LowRank:
    """The formula of masked LoRA.

    The trained vector has the entries of `A` (rank, cols), then those of `B` (rows, rank).
    """

    def __init__(self, shape: Shape, rank: int) -> None:
        self.rank, self.rows, self.cols = rank, *shape

    @staticmethod
    def size(shape: Shape, rank: int) -> int:
        """Return the number of entries of `A` and `B`."""
        return rank * sum(shape)

    def initial(self, generator: torch.Generator) -> Float[Tensor, "values"]:
        """Return the vector with `A` uniform within +-1 / sqrt(cols), as in the code of LoRA, and `B` zero."""
        first = torch.rand(self.rank * self.cols, generator=generator) * 2 - 1
        return torch.cat([first * self.cols**-0.5, torch.zeros(self.rows * self.rank)])

    def change(self, values: Float[Tensor, "values"], _base: Rows, rows: slice) -> Rows:
        """Return these rows of the scaled product of `B` and `A`."""
        right, left = self._factors(values)
        return SCALE * (left[rows] @ right)

    def backward(
        self, values: Float[Tensor, "values"], _base: Rows, rows: slice, gradient: Rows
    ) -> Float[Tensor, "values"]:
        """Return the part of the vector's gradient that comes from these rows.

        It covers all of `A`, and these rows of `B`.
        """
        pulled = torch.zeros_like(values)
        (right, left), (of_right, of_left) = self._factors(values), self._factors(pulled)
        of_right.addmm_(left[rows].t(), gradient, alpha=SCALE)
        of_left[rows] = SCALE * (gradient @ right.t())
        return pulled

    def _factors(
        self, values: Float[Tensor, "values"]
    ) -> tuple[Float[Tensor, "rank cols"], Float[Tensor, "rows rank"]]:
        end = self.rank * self.cols
        return values[:end].view(self.rank, self.cols), values[end:].view(self.rows, self.rank)


class MaskedLora(DenseChange):
    """Trains the matrices `A` and `B` of every target."""

    formula = LowRank
