"""Other optimizers for the training of all nonzeros, to compare with the optimizer of `seft.repair.factored`.

Each class is the same linear with another optimizer step. All steps have a root mean square of at most the learning
rate, so the optimizers can be compared at the same rate. They are written for clarity: they need several matrices of
the size of the weight.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seft.repair.factored import EPSILON, USUAL
from seft.repair.nonzeros import NonzeroLinear
from seft.repair.rounding import round_stochastically

Matrix = Float[Tensor, "rows cols"]
MOMENTUM = 0.9


class Factored(NonzeroLinear):
    """The optimizer of the library in plain code: normalised by row and column, rounded stochastically."""

    def _step(self, gradient: Matrix, rate: float) -> None:
        masked = gradient.to(self._norm.dtype) * (self.weight != 0)
        self._norm = masked.norm()
        if 0 < float(self._norm) < torch.inf:
            self._change(self._direction(masked) * rate)
        self._target.store()

    def _direction(self, gradient: Matrix) -> Matrix:
        """Return the step for a learning rate of 1. `gradient` is zero at the zeros of the weight."""
        squares, moments = gradient.square(), self._moments
        ratio = moments.ratio(squares.sum() / moments.row_counts.sum())
        moments.observe(squares.sum(1), squares.sum(0), squares.new_ones((), dtype=torch.bool))
        row_scale, col_scale = moments.scales()
        return self._limited(gradient * row_scale[:, None] * col_scale) / (ratio / USUAL).clamp(min=1)

    def _change(self, step: Matrix) -> None:
        self.weight.copy_(self._rounded(self.weight.to(step.dtype) - step, "weight"))

    def _limited(self, direction: Matrix, least: float = 1.0) -> Matrix:
        """Divide by the root mean square over the nonzeros, or by `least` if `least` is larger."""
        return direction / (direction.square().sum() / self._moments.row_counts.sum()).sqrt().clamp(min=least)

    def _rounded(self, values: Matrix, what: str) -> Tensor:
        return round_stochastically(values, self.weight.dtype, self._seed, f"{self._name} {self.plan.step} {what}")


class RoundedToNearest(Factored):
    """A changed weight is rounded to the nearest number, so small steps are lost."""

    def _change(self, step: Matrix) -> None:
        self.weight.copy_(self.weight.to(step.dtype) - step)


class WithMasters(Factored):
    """A float32 copy of every weight is trained, and the weight is the copy rounded to the nearest number."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._master = self.weight.to(self._norm.dtype)

    def _change(self, step: Matrix) -> None:
        self._master -= step
        self.weight.copy_(self._master)

    def _statistics(self) -> dict[str, Tensor]:
        return super()._statistics() | {"master": self._master}


class WithMomentum(Factored):
    """The step is a moving average of the normalised gradients, kept in the dtype of the weight."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._momentum = torch.zeros_like(self.weight)

    def _direction(self, gradient: Matrix) -> Matrix:
        average = self._momentum.to(gradient.dtype).lerp_(super()._direction(gradient), 1 - MOMENTUM)
        self._momentum.copy_(self._rounded(average.clone(), "momentum"))
        return average / (1 - MOMENTUM ** int(self._moments.age))

    def _statistics(self) -> dict[str, Tensor]:
        return super()._statistics() | {"momentum": self._momentum}


class BySign(Factored):
    """Every nonzero takes a step of the same size. There is no state."""

    def _direction(self, gradient: Matrix) -> Matrix:
        return gradient.sign()


class ByNorms(Factored):
    """A gradient is divided by the norms of its input and of its output gradient in this step. There is no state.

    The squares of these norms are the diagonal of the curvature that K-FAC estimates (Martens & Grosse 2015, arXiv
    1503.05671).
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named | {"watch": True})

    def _direction(self, gradient: Matrix) -> Matrix:
        outputs, inputs = (sums.add(EPSILON).rsqrt() for sums in (self._new_outputs, self._new_inputs))
        return self._limited(gradient * outputs[:, None] * inputs, least=EPSILON)
