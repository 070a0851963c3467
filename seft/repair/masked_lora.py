"""LoRA under the mask, `W = W0 + 2 * mask(B A)`, as in SQFT's SparsePEFT (arXiv 2410.03750) and LoRS (2501.08582).

The masked product is computed again when it is needed, as in LoRS. The gradients of `A` and `B` are exact, as in SQFT.
The gradients in the published code of LoRS ignore the mask. They cost less, but gave worse losses (docs/log.md). [ours]
`A` and `B` start as in LoRA. In LoRS their initial values are computed from gradients.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from seft.repair.dense_change import DenseChange, Formula, Rows
from seft.repair.sampled import product_rows, row_chunks
from seft.repair.values import Vector

SCALE = 2.0
"""Scale of the product `B A`, which LoRA calls alpha / r; the same for every rank."""


class LowRank(Formula):
    """The formula of masked LoRA.

    The trained vector has the entries of `A` (rank, cols), then those of `B` (rows, rank).
    """

    def initial(self, generator: torch.Generator) -> Vector:
        """Return the vector with `A` uniform within +-1 / sqrt(cols), as in the code of LoRA, and `B` zero."""
        first = torch.rand(self.rank * self.cols, generator=generator) * 2 - 1
        return torch.cat([first * self.cols**-0.5, torch.zeros(self.rows * self.rank)])

    def change(self, values: Vector, _base: Rows, rows: slice) -> Rows:
        """Return these rows of the scaled product of `B` and `A`."""
        right, left = self._factors(values)
        return SCALE * (left[rows] @ right)

    def gradient(
        self,
        values: Vector,
        base: Float[Tensor, "rows cols"],
        left: Float[Tensor, "tokens rows"],
        right: Float[Tensor, "tokens cols"],
    ) -> Vector:
        """Return the gradients of `A` and `B`, computed for a few rows of the weight matrix at a time."""
        pulled = torch.zeros_like(values)
        (a, b), (of_a, of_b) = self._factors(values), self._factors(pulled)
        for rows in row_chunks(base.shape):
            masked = product_rows(left, right, rows).mul_(base[rows].bool())
            of_a.addmm_(b[rows].t(), masked)
            of_b[rows] = masked @ a.t()
        return pulled.mul_(SCALE)

    def _factors(self, values: Vector) -> tuple[Float[Tensor, "rank cols"], Float[Tensor, "rows rank"]]:
        end = self.rank * self.cols
        return values[:end].view(self.rank, self.cols), values[end:].view(self.rows, self.rank)


class MaskedLora(DenseChange):
    """Trains the matrices `A` and `B` of every target."""

    formula = LowRank
