"""A base for dataclasses of tensors, and a vector of trained values with Adam's moments."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

Vector = Float[Tensor, "values"]


@dataclass(frozen=True, slots=True)
class TensorFields:
    """Base of dataclasses whose fields are all tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Values(TensorFields):
    """Vector of trained values, in float32 or wider, with Adam's moments and the number of gradients in them."""

    values: Vector
    means: Vector
    squares: Vector
    ages: Int[Tensor, "1"]

    @classmethod
    def start(cls, values: Vector) -> "Values":
        """Return the vector with empty moments."""
        ages = torch.zeros(1, dtype=torch.int16, device=values.device)
        return cls(values, torch.zeros_like(values), torch.zeros_like(values), ages)

    @property
    def deltas(self) -> Vector:
        """Values that weight decay pulls to zero: all trained values."""
        return self.values
