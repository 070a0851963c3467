"""A change of all nonzeros of a linear, made from few values; zeros stay zero, so any pattern is kept.

The merged weight stands in place: `base + change(values)`, in the weight's own dtype, zero wherever the base is. Change
and gradient are made for a few rows at a time: no matrix as large as the weight exists but weight and base. The base,
a copy of the pruned weight, is kept, because the change cannot be taken back out of a rounded sum.
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
from seft.repair.in_place import InPlace
from seft.repair.method import Work
from seft.repair.product import trained_product
from seft.repair.ranks import Shape, ranks
from seft.repair.sampled import row_chunks
from seft.seeds import generator

Rows = Float[Tensor, "chunk cols"]


class Formula(Protocol):
    """How some values, in one vector, change a weight of a shape. `rows` and `base` are a chunk of its rows."""

    def __init__(self, shape: Shape, rank: int) -> None: ...

    @staticmethod
    def size(shape: Shape, rank: int) -> int:
        """How many values there are."""

    def start(self, generator: torch.Generator) -> Float[Tensor, "values"]:
        """First values, which change nothing."""

    def change(self, values: Float[Tensor, "values"], base: Rows, rows: slice) -> Rows:
        """What is added to the base; zeros of the base are left out by the caller."""

    def pull(self, values: Float[Tensor, "values"], base: Rows, rows: slice, gradient: Rows) -> Float[Tensor, "values"]:
        """The part of the values' gradient that comes from these rows; `gradient` is zero where the base is."""


@dataclass(frozen=True, slots=True)
class Values:
    """A vector that is trained whole, in float32 or wider, with Adam's moments and the number of gradients in them."""

    values: Float[Tensor, "values"]
    means: Float[Tensor, "values"]
    squares: Float[Tensor, "values"]
    ages: Int[Tensor, "1"]

    @classmethod
    def start(cls, values: Float[Tensor, "values"]) -> "Values":
        """With no memory of any gradient."""
        ages = torch.zeros(1, dtype=torch.int16, device=values.device)
        return cls(values, torch.zeros_like(values), torch.zeros_like(values), ages)

    @property
    def deltas(self) -> Float[Tensor, "values"]:
        """What weight decay pulls to zero."""
        return self.values

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ChangedLinear:
    """A linear whose weight is changed by a formula."""

    def __init__(self, weight: Float[Tensor, "rows cols"], formula: Formula, generator: torch.Generator) -> None:
        self.weight, self.base, self.formula = weight, weight.clone(), formula
        dtype = master_dtype(weight.dtype)
        self._adopt(Values.start(formula.start(generator).to(weight.device, dtype)))

    @property
    def trained(self) -> int:
        """The length of the vector."""
        return len(self.vector.values)

    def product(self, inputs: Float[Tensor, "*batch cols"], plain: Product) -> Float[Tensor, "*batch rows"]:
        """What `plain`, the linear's own product, gives; through it gradients come together."""
        return trained_product(inputs, self._leaf, self, plain)

    def gradient(
        self, left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"]
    ) -> Float[Tensor, "values"]:
        """Through the masked gradient of the weight, a few rows of it at a time."""
        values = self.vector.values
        left, right = left.to(values.dtype), right.to(values.dtype)
        whole = torch.zeros_like(values)
        for rows in row_chunks(self.weight.shape) if len(values) else ():
            base = self.base[rows].to(values.dtype)
            masked = (left[:, rows].t() @ right).masked_fill_(base == 0, 0)
            whole += self.formula.pull(values, base, rows, masked)
        return whole

    def take_gradient(self) -> Float[Tensor, "values"]:
        """The gradient that has come together since the last call; zero where no token came by."""
        gradient, self._leaf.grad = self._leaf.grad, None
        return torch.zeros_like(self.vector.values) if gradient is None else gradient

    def update(self, gradient: Float[Tensor, "values"], rate: float, weight_decay: float) -> None:
        """Step the values, and make the weight anew."""
        optimizer.step(self.vector, gradient, rate, weight_decay)
        self._write()

    def reactivated(self) -> int:
        """None: zeros stay."""
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """The vector and its moments; the weight follows from them and the base."""
        return self.vector.tensors()

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved vector."""
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


class DenseChange(InPlace):
    """A formula for each target, in ranks that make up the asked count of values."""

    formula: type[Formula]

    def __init__(self, work: Work) -> None:
        found = ranks(work.targets, work.config, self.formula.size)
        linears = {}
        for name, target in work.targets.items():
            rows, cols = target.weight.shape
            formula = self.formula((rows, cols), found[name])
            linears[name] = ChangedLinear(target.weight, formula, generator(work.config.seed, name))
        super().__init__(work, linears)
