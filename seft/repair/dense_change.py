"""A change of all nonzeros of a linear, computed from a short vector of trained values. Zeros stay zero.

The weight matrix of the linear is always the merged one: `base + change(values)` in its own dtype, and zero at the
zeros of the base. Change and gradient are computed for a few rows at a time, so the weight matrix and its base are the
only full matrices. The base is a copy of the pruned weight matrix. It is needed because the change cannot be recovered
from a rounded sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.dtypes import master_dtype
from seft.models.products import Product
from seft.repair import optimizer
from seft.repair.in_place import InPlaceMethod
from seft.repair.method import Work
from seft.repair.product import trained_product
from seft.repair.ranks import Shape, ranks
from seft.repair.sampled import row_chunks
from seft.seeds import generator

Rows = Float[Tensor, "chunk cols"]


class Formula(Protocol):
    """Computes the change of a weight matrix from one vector of trained values, for some rows at a time.

    `rows` is a slice of the rows of the matrix, and `base` has the pruned weights of these rows.
    """

    def __init__(self, shape: Shape, rank: int) -> None: ...

    @staticmethod
    def size(shape: Shape, rank: int) -> int:
        """Return the length of the vector for a weight matrix of this shape."""

    def initial(self, generator: torch.Generator) -> Float[Tensor, "values"]:
        """Return the initial vector, for which the change is zero."""

    def change(self, values: Float[Tensor, "values"], base: Rows, rows: slice) -> Rows:
        """Return the matrix that is added to `base`. The caller sets its entries at the zeros of `base` to zero."""

    def backward(
        self, values: Float[Tensor, "values"], base: Rows, rows: slice, gradient: Rows
    ) -> Float[Tensor, "values"]:
        """Return the part of the vector's gradient that comes from these rows.

        `gradient` is the gradient of these rows of the weight matrix, and zero at the zeros of `base`.
        """


@dataclass(frozen=True, slots=True)
class Values:
    """Vector of trained values, in float32 or wider, with Adam's moments and the number of gradients in them."""

    values: Float[Tensor, "values"]
    means: Float[Tensor, "values"]
    squares: Float[Tensor, "values"]
    ages: Int[Tensor, "1"]

    @classmethod
    def start(cls, values: Float[Tensor, "values"]) -> "Values":
        """Return the vector with empty moments."""
        ages = torch.zeros(1, dtype=torch.int16, device=values.device)
        return cls(values, torch.zeros_like(values), torch.zeros_like(values), ages)

    @property
    def deltas(self) -> Float[Tensor, "values"]:
        """Values that weight decay pulls to zero, which are all of them."""
        return self.values

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the vector by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ChangedLinear:
    """A linear whose weight matrix is its pruned weight matrix plus the change that a formula computes."""

    def __init__(self, weight: Float[Tensor, "rows cols"], formula: Formula, generator: torch.Generator) -> None:
        self.weight, self.base, self.formula = weight, weight.clone(), formula
        dtype = master_dtype(weight.dtype)
        self._adopt(Values.start(formula.initial(generator).to(weight.device, dtype)))

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return len(self.vector.values)

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """Return `plain(inputs)`, the linear's outputs with the present weights.

        `plain` is the forward function of the linear. The backward pass adds to the gradient that `take_gradient`
        returns.
        """
        return trained_product(inputs, self._leaf, self, plain)

    def gradient(
        self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]
    ) -> Float[Tensor, "values"]:
        """Return the gradient of the vector for one micro-batch, computed a few rows at a time.

        `left` is the gradient of the linear's outputs, `right` are its inputs.
        """
        values = self.vector.values
        left, right = left.to(values.dtype), right.to(values.dtype)
        whole = torch.zeros_like(values)
        for rows in row_chunks(self.weight.shape) if len(values) else ():
            base = self.base[rows].to(values.dtype)
            masked = (left[:, rows].t() @ right).masked_fill_(base == 0, 0)
            whole += self.formula.backward(values, base, rows, masked)
        return whole

    def take_gradient(self) -> Float[Tensor, "values"]:
        """Return the gradient accumulated since the last call, and reset it. It is zero if the linear got no tokens."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self.vector.values) if gradient is None else gradient

    def update(self, gradient: Float[Tensor, "values"], rate: float, weight_decay: float) -> None:
        """Take one optimizer step with this gradient, and write the changed weights into the linear."""
        optimizer.step(self.vector, gradient, rate, weight_decay)
        self._write()

    def reactivated_count(self) -> int:
        """Return 0, because zeros stay zero."""
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the vector and its moments. The weights follow from them and the pruned weights."""
        return self.vector.tensors()

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the vector and its moments by saved ones, and write the changed weights into the linear."""
        self._adopt(Values(**tensors))
        self._write()

    def _adopt(self, vector: Values) -> None:
        self.vector = vector
        self._leaf = vector.values.detach().requires_grad_()

    def _write(self) -> None:
        values = self.vector.values
        for rows in row_chunks(self.weight.shape) if len(values) else ():
            base = self.base[rows].to(values.dtype)
            changed = base + self.formula.change(values, base, rows)
            self.weight[rows] = changed.masked_fill_(base == 0, 0).to(self.weight.dtype)


class DenseChange(InPlaceMethod):
    """Trains one vector per target, from which a formula computes the change of the target's weights.

    The ranks are chosen so that the vectors together have the configured number of values.
    """

    formula: type[Formula]

    def __init__(self, work: Work) -> None:
        rank_of = ranks(work.targets, work.config, self.formula.size)
        linears = {}
        for name, target in work.targets.items():
            rows, cols = target.weight.shape
            formula = self.formula((rows, cols), rank_of[name])
            linears[name] = ChangedLinear(target.weight, formula, generator(work.config.seed, name))
        super().__init__(work, linears)
