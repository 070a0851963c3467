"""The optimizer of all nonzeros of a weight matrix, with state for one row and one column of it.

The second moment of a gradient entry is the product of a row's and a column's mean square (Shazeer & Stern 2018,
Adafactor, section 3). There is no momentum, and the weights are changed in their own dtype. In bfloat16 and float16 a
changed weight is rounded stochastically, so that small steps count on average (Gupta et al. 2015, section 3).

[ours] Means are over the nonzeros of the matrix. Zeros have no gradient and stay zero.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seft.dtypes import master_dtype
from seft.repair import passes
from seft.repair.values import TensorFields

SQUARE_DECAY = 0.99
"""Decay per step of the moving averages of the squared gradients."""
USUAL = 2.0
"""A gradient that is larger than the earlier ones by more than this factor takes a smaller step."""
EPSILON = 1e-30
"""Added to every mean square, to avoid a division by zero in a row or column without gradient (Adafactor's eps1)."""


@dataclass(frozen=True, slots=True)
class Moments(TensorFields):
    """Moving averages of the mean squared gradient of each row and column, and the number of gradients in them.

    `row_counts` and `col_counts` are the numbers of nonzeros over which the means are taken.
    """

    rows: Float[Tensor, "rows"]
    cols: Float[Tensor, "cols"]
    age: Int[Tensor, ""]
    row_counts: Float[Tensor, "rows"]
    col_counts: Float[Tensor, "cols"]

    @classmethod
    def start(cls, weight: Float[Tensor, "rows cols"]) -> "Moments":
        """Return moments without gradients for the nonzeros of a weight matrix."""
        rows, cols = (weight.new_zeros(size, dtype=master_dtype(weight.dtype)) for size in weight.shape)
        age = torch.zeros((), dtype=torch.int64, device=weight.device)
        moments = cls(rows, cols, age, rows.clone(), cols.clone())
        moments.count(weight)
        return moments

    def count(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Count the nonzeros again, after their positions changed."""
        self.row_counts.copy_(weight.count_nonzero(1))
        self.col_counts.copy_(weight.count_nonzero(0))

    def observe(
        self, squares_by_row: Float[Tensor, "rows"], squares_by_col: Float[Tensor, "cols"], usable: Bool[Tensor, ""]
    ) -> None:
        """Add a gradient to the averages if it is usable, given the sums of its squares."""
        for average, squares, counts in (
            (self.rows, squares_by_row, self.row_counts),
            (self.cols, squares_by_col, self.col_counts),
        ):
            new = average.lerp(squares / counts.clamp(min=1) + EPSILON, 1 - SQUARE_DECAY)
            average.copy_(torch.where(usable, new, average))
        self.age.add_(usable)

    def ratio(self, mean_square: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return how many times as large as usual a gradient with this mean square is; 1 if it is the first one."""
        usual = self._mean / self._correction
        return torch.where(self.age > 0, (mean_square / usual).sqrt(), 1.0)

    def scales(self) -> tuple[Float[Tensor, "rows"], Float[Tensor, "cols"]]:
        """Return factors of rows and columns; their products are the inverse root mean squares of the gradients."""
        return (self._mean * self._correction).sqrt() * self.rows.rsqrt(), self.cols.rsqrt()

    def copy(self) -> "Moments":
        """Return a copy that shares no memory."""
        return Moments(*(tensor.clone() for tensor in self.tensors().values()))

    @property
    def _mean(self) -> Float[Tensor, ""]:
        """The moving average of the mean square of all entries, which started at zero."""
        return (self.rows * self.row_counts).sum() / self.row_counts.sum()

    @property
    def _correction(self) -> Float[Tensor, ""]:
        """Divisor that corrects a moving average for its start at zero (Adam, algorithm 1)."""
        return -torch.expm1(self.age.to(self.rows.dtype) * math.log(SQUARE_DECAY))


def step(
    weight: Float[Tensor, "rows cols"],
    gradient: Float[Tensor, "rows cols"],
    moments: Moments,
    rate: float,
    *,
    seed: int,
    name: str,
) -> Float[Tensor, ""]:
    """Change the nonzeros of a weight matrix in place by one step. Returns the norm of their gradient.

    The gradient is overwritten. The step of every nonzero is `rate` times its normalised gradient. If the root mean
    square of the normalised gradients is larger than 1, all are divided by it (Adafactor, section 6). A gradient that
    is zero everywhere, or not finite, changes nothing. `seed` and `name` set the random numbers of the rounding; a call
    with the same two gives the same bits.

    [ours] If the gradient is c times as large as the earlier ones, and c is larger than `USUAL`, the step is divided by
    c / `USUAL`. Such a gradient points across a steep valley, where a step of the usual size can destroy the model.

    Nothing here waits for the device.
    """
    by_row, by_col = passes.square_sums(weight, gradient)
    total, count = by_row.sum(), moments.row_counts.sum()
    usable = (total > 0) & total.isfinite()
    ratio = moments.ratio(total / count)
    moments.observe(by_row, by_col, usable)
    row_scale, col_scale = moments.scales()
    normalised = passes.scaled_square_sum(gradient, weight, row_scale, col_scale)
    row_scale *= rate / (normalised / count).sqrt().clamp(min=1) / (ratio / USUAL).clamp(min=1)
    row_scale.masked_fill_(~usable, 0.0)
    passes.change(weight, gradient, row_scale, col_scale, seed=seed, name=name)
    return total.sqrt()
