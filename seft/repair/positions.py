"""Sorted lists of positions in a weight, with data per position. Sorting makes it cheap to combine two lists.

A position is the flat index `row * cols + col` as int32, so a linear has at most 2^31 - 1 weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

P = TypeVar("P", bound="Positions")
"""A kind of list. Not `Self`, which the shape checks of the tests do not support."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Sorted unique `indices`. Every other field of a subclass has one entry per index, in the same order."""

    indices: Int[Tensor, "positions"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self: P, chosen: Shaped[Tensor, "chosen"]) -> P:
        """Return some of the positions with all fields, by mask or by increasing places."""
        return type(self)(*(tensor[chosen] for tensor in self.tensors().values()))

    def joined(self: P, other: P) -> P:
        """Return both lists merged. They must have no position in common."""
        order = torch.cat([self.indices, other.indices]).argsort()
        pairs = zip(self.tensors().values(), other.tensors().values(), strict=True)
        return type(self)(*(torch.cat(pair)[order] for pair in pairs))

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class BasePositions(Positions):
    """Positions with the exact values that a weight had there."""

    bases: Shaped[Tensor, "positions"]

    def restore(self, weight: Shaped[Tensor, "rows cols"]) -> None:
        """Write the bases back into the weight."""
        put(weight, self.indices, self.bases)


def entries(weight: Shaped[Tensor, "rows cols"], indices: Int[Tensor, "positions"]) -> Shaped[Tensor, "positions"]:
    """Return a weight's values at some positions, whatever its memory layout."""
    return weight[indices // weight.shape[1], indices % weight.shape[1]]


def put(
    weight: Shaped[Tensor, "rows cols"], indices: Int[Tensor, "positions"], values: Shaped[Tensor, "positions"]
) -> None:
    """Write values into a weight at some positions."""
    weight[indices // weight.shape[1], indices % weight.shape[1]] = values


def named_fields(lists: Mapping[str, Positions]) -> dict[str, Tensor]:
    """Return the fields of several lists under the names used in saved states: `list.field`."""
    return {f"{name}.{field}": tensor for name, each in lists.items() for field, tensor in each.tensors().items()}


def fields_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the fields of one list from the result of `named_fields`."""
    return {field: tensor for key, tensor in tensors.items() for of, _, field in [key.partition(".")] if of == name}
