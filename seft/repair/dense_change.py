"""A change of all nonzeros of a linear, computed from a short vector of trained values. Zeros stay zero.

The weight matrix of the linear keeps its pruned values, `base`, until `merge`. The changed matrix is `base +
change(values)` in the dtype of the linear, and zero where `base` is zero. The forward and the backward pass compute it
again, a few rows at a time, as LoRS does (arXiv 2501.08582). So there is no second matrix of the size of the weight.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seft.dtypes import master_dtype
from seft.fit import Shape, ranks
from seft.models.products import Product
from seft.models.targets import Target
from seft.repair import optimizer
from seft.repair.in_place import OneByOne, SingleTrainer
from seft.repair.method import Work
from seft.repair.sampled import row_chunks
from seft.repair.values import Values, Vector
from seft.report import Reporter
from seft.seeds import generator

Rows = Float[Tensor, "chunk cols"]


class Formula(Protocol):
    """Computes the change of a weight matrix from one vector of trained values."""

    rank: int
    rows: int
    cols: int

    def __init__(self, shape: Shape, rank: int) -> None:
        self.rank, self.rows, self.cols = rank, *shape

    def initial(self, generator: torch.Generator) -> Vector:
        """Return the initial vector, for which the change is zero."""

    def change(self, values: Vector, base: Rows, rows: slice) -> Rows:
        """Return the change of `base`, the pruned weights of the rows in the slice `rows`, as a new matrix.

        The caller adds `base`, and sets the entries at the zeros of `base` to zero.
        """

    def gradient(
        self,
        values: Vector,
        base: Float[Tensor, "rows cols"],
        left: Float[Tensor, "tokens rows"],
        right: Float[Tensor, "tokens cols"],
    ) -> Vector:
        """Return the gradient of the vector for one micro-batch.

        `base` is the pruned weight matrix, `left` is the gradient of the linear's outputs, `right` are its inputs.
        """


class ChangedLinear(SingleTrainer):
    """A linear that computes with its pruned weight matrix plus the change that a formula computes."""

    def __init__(self, target: Target, formula: Formula, generator: torch.Generator) -> None:
        self._target, self.formula = target, formula
        dtype = master_dtype(self.weight.dtype)
        self._adopt(Values.start(formula.initial(generator).to(self.weight.device, dtype)))

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """Return the linear's outputs with the changed weights. `plain` has the pruned weights."""
        return super().product(inputs, lambda each: self._outputs(each, plain))

    def input_gradient(self, left: Float[Tensor, "*batch rows"]) -> Float[Tensor, "*batch cols"]:
        """Return the gradient of the inputs, summed in float32 or wider. `left` is the gradient of the outputs."""
        shape = (*left.shape[:-1], self.weight.shape[1])
        gradient = left.new_zeros(shape, dtype=self.vector.values.dtype)
        for rows, changed in self._changed_rows():
            gradient += left[..., rows] @ changed
        return gradient.to(left.dtype)

    def gradient(self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]) -> Vector:
        """Return the gradient of the vector for one micro-batch.

        `left` is the gradient of the linear's outputs, `right` are its inputs.
        """
        values = self.vector.values
        if not len(values):
            return torch.zeros_like(values)
        return self.formula.gradient(values, self.weight, left, right)

    def update(self, gradient: Vector, rate: float, weight_decay: float) -> None:
        """Take one optimizer step with this gradient."""
        optimizer.step(self.vector, gradient, rate, weight_decay)

    def merge(self) -> None:
        """Write the changed weights into the weight matrix. Call it once, after the last step."""
        for rows, changed in self._changed_rows():
            self.weight[rows] = changed

    def tensors(self) -> dict[str, Tensor]:
        """Return the vector and its moments. The changed weights follow from them and the pruned weights."""
        return self.vector.tensors()

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the vector and its moments by saved ones."""
        self._adopt(Values(**tensors))

    def _adopt(self, vector: Values) -> None:
        self.vector = vector
        self._leaf = vector.values.detach().requires_grad_()

    def _outputs(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        height, width = self.weight.shape
        bias = plain(inputs.new_zeros(1, width))[0]  # The bias may be in the forward function of an expert.
        outputs = inputs.new_empty(*inputs.shape[:-1], height)
        for rows, changed in self._changed_rows():
            outputs[..., rows] = F.linear(inputs, changed, bias[rows])
        return outputs

    def _changed_rows(self) -> Iterator[tuple[slice, Rows]]:
        """Yield the changed weight matrix, a few rows at a time. A linear without trained values is not changed."""
        values = self.vector.values
        for rows in row_chunks(self.weight.shape):
            base = self.weight[rows]
            if len(values):
                wide = base.to(values.dtype)
                yield rows, self.formula.change(values, wide, rows).mul_(base.bool()).add_(wide).to(base.dtype)
            else:
                yield rows, base


class DenseChange(OneByOne):
    """Trains one vector per target, from which a formula computes the change of the target's weights.

    The ranks are chosen so that the vectors together have the configured number of values.
    """

    formula: type[Formula]

    def __init__(self, work: Work) -> None:
        self._linears, shapes = {}, work.shapes
        for name, rank in ranks(shapes, work.config).items():
            formula = self.formula(shapes[name], rank)
            self._linears[name] = ChangedLinear(work.targets[name], formula, generator(work.config.seed, name))
        super().__init__(work, self._linears)

    def finish(self, report: Reporter) -> None:
        """Merge the changes into the weight matrices, and restore the original forward functions of the modules."""
        for linear in self._linears.values():
            linear.merge()
        super().finish(report)
