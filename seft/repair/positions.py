"""Sorted lists of positions in a weight matrix, with data per position. Sorted lists can be merged quickly.

A position is the flat index `row * cols + col` as int32, so a matrix has at most 2^31 - 1 entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from seft.repair.values import TensorFields


@dataclass(frozen=True, slots=True)
class Positions(TensorFields):
    """Sorted unique positions `indices`.

    Every other field of a subclass has one entry per position, in the same order.
    """

    indices: Int[Tensor, "positions"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: Shaped[Tensor, "chosen"]) -> Self:
        """Return some of the positions with all fields, chosen by a mask or by increasing places in the list."""
        return type(self)(*(tensor[chosen] for tensor in self.tensors().values()))

    def joined(self, other: Self) -> Self:
        """Return both lists merged into one sorted list. They must have no position in common."""
        order = torch.cat([self.indices, other.indices]).argsort()
        pairs = zip(self.tensors().values(), other.tensors().values(), strict=True)
        return type(self)(*(torch.cat(pair)[order] for pair in pairs))


@dataclass(frozen=True, slots=True)
class BasePositions(Positions):
    """Positions with the exact values that a weight matrix had there at some time."""

    bases: Shaped[Tensor, "positions"]

    def restore(self, weight: Shaped[Tensor, "rows cols"]) -> None:
        """Write the stored values back into the weight matrix."""
        put(weight, self.indices, self.bases)


def entries(weight: Shaped[Tensor, "rows cols"], indices: Int[Tensor, "positions"]) -> Shaped[Tensor, "positions"]:
    """Return the entries of a weight matrix at some positions, for any memory layout of the matrix."""
    return weight[indices // weight.shape[1], indices % weight.shape[1]]


def put(
    weight: Shaped[Tensor, "rows cols"], indices: Int[Tensor, "positions"], values: Shaped[Tensor, "positions"]
) -> None:
    """Write values into a weight matrix at some positions, rounded to its dtype."""
    values = values.to(weight.dtype)
    if weight.is_contiguous():  # the divisions would take longer than the writing
        weight.view(-1)[indices] = values
    else:
        weight[indices // weight.shape[1], indices % weight.shape[1]] = values


def named_fields(lists: Mapping[str, Positions]) -> dict[str, Tensor]:
    """Return the fields of several lists by the names that saved states use: `list.field`."""
    return {f"{name}.{field}": tensor for name, each in lists.items() for field, tensor in each.tensors().items()}


def fields_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the fields of the list `name` from a result of `named_fields`."""
    return {field: tensor for key, tensor in tensors.items() for of, _, field in [key.partition(".")] if of == name}
