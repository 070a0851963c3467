"""A change of all nonzeros of a linear, computed from few values. Zeros stay zero, so any pattern is kept.

The linear's weight is the merged one: `base + change(values)`, in its own dtype, and zero where the base is zero.
Change and gradient are computed for a few rows at a time, so weight and base are the only full matrices. The base is a
copy of the pruned weight; it is needed because the change cannot be recovered from a rounded sum.
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
    """Computes the change of a weight from one vector of values. `rows` and `base` are a chunk of the weight's rows."""

    def __init__(self, shape: Shape, rank: int) -> None: ...

    @staticmethod
    def size(shape: Shape, rank: int) -> int:
        """Return the number of values."""

    def initial(self, generator: torch.Generator) -> Float[Tensor, "values"]:
        """Return initial values, for which the change is zero."""

    def change(self, values: Float[Tensor, "values"], base: Rows, rows: slice) -> Rows:
        """Return what is added to the base. The caller masks the zeros of the base."""

    def backward(
        self, values: Float[Tensor, "values"], base: Rows, rows: slice, gradient: Rows
    ) -> Float[Tensor, "values"]:
        """Return these rows' part of the gradient of the values. `gradient` is zero where the base is zero."""


@dataclass(frozen=True, slots=True)
class Values:
    """A trained vector, in float32 or wider, with Adam's moments and the number of gradients in them."""

    values: Float[Tensor, "values"]
    means: Float[Tensor, "values"]
    squares: Float[Tensor, "values"]
    ages: Int[Tensor, "1"]

    @classmethod
    def start(cls, values: Float[Tensor, "values"]) -> "Values":
        """Return the values with empty moments."""
        ages = torch.zeros(1, dtype=torch.int16, device=values.device)
        return cls(values, torch.zeros_like(values), torch.zeros_like(values), ages)

    @property
    def deltas(self) -> Float[Tensor, "values"]:
        """The values that weight decay pulls to zero: all."""
        return self.values

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ChangedLinear:
    """A linear whose weight is changed by a formula."""

    def __init__(self, weight: Float[Tensor, "rows cols"], formula: Formula, generator: torch.Generator) -> None:
        self.weight, self.base, self.formula = weight, weight.clone(), formula
        dtype = master_dtype(weight.dtype)
        self._adopt(Values.start(formula.initial(generator).to(weight.device, dtype)))

    @property
    def trained_values(self) -> int:
        """Number of trained values."""
        return len(self.vector.values)

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """Return the result of `plain`, the linear's own product. Backward accumulates the values' gradient."""
        return trained_product(inputs, self._leaf, self, plain)

    def gradient(
        self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]
    ) -> Float[Tensor, "values"]:
        """Return the gradient of the values from the masked gradient of the weight, a few rows at a time.

        `left` is the gradient of the outputs, `right` the inputs.
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
        """Return and reset the gradient accumulated since the last call; zero if there were no tokens."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self.vector.values) if gradient is None else gradient

    def update(self, gradient: Float[Tensor, "values"], rate: float, weight_decay: float) -> None:
        """Take one optimizer step, and write the new weight."""
        optimizer.step(self.vector, gradient, rate, weight_decay)
        self._write()

    def reactivated_count(self) -> int:
        """Return 0: zeros stay zero."""
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the vector and its moments. The weight follows from them and the base."""
        return self.vector.tensors()

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved vector."""
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
    """Trains one formula per target. The ranks give the configured number of values in all."""

    formula: type[Formula]

    def __init__(self, work: Work) -> None:
        rank_of = ranks(work.targets, work.config, self.formula.size)
        linears = {}
        for name, target in work.targets.items():
            rows, cols = target.weight.shape
            formula = self.formula((rows, cols), rank_of[name])
            linears[name] = ChangedLinear(target.weight, formula, generator(work.config.seed, name))
        super().__init__(work, linears)
