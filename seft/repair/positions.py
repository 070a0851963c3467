"""Lists of positions in a weight, each with what is known about it, kept sorted so that two lists meet cheaply.

A position is flat, `row * cols + col`, and int32: that bounds a linear to 2^31 - 1 weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

P = TypeVar("P", bound="Positions")
"""A kind of list. `Self` would say it too, but shapes are checked while testing, function by function."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Sorted unique `indices`; every other field of a subclass has one entry for each of them, in their order."""

    indices: Int[Tensor, "positions"]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self: P, chosen: Shaped[Tensor, "chosen"]) -> P:
        """Some of the positions, by mask or by increasing places, with all that belongs to them."""
        return type(self)(*(tensor[chosen] for tensor in self.tensors().values()))

    def joined(self: P, other: P) -> P:
        """Both lists as one; they must share no position."""
        order = torch.cat([self.indices, other.indices]).argsort()
        pairs = zip(self.tensors().values(), other.tensors().values(), strict=True)
        return type(self)(*(torch.cat(pair)[order] for pair in pairs))

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Former(Positions):
    """Positions with what a weight had there, bit for bit."""

    bases: Shaped[Tensor, "positions"]

    def restore(self, weight: Shaped[Tensor, "rows cols"]) -> None:
        """Give the weight its bases back, in place."""
        put(weight, self.indices, self.bases)


def entries(weight: Shaped[Tensor, "rows cols"], indices: Int[Tensor, "positions"]) -> Shaped[Tensor, "positions"]:
    """What a weight has at some positions, in whichever order its memory holds it."""
    return weight[indices // weight.shape[1], indices % weight.shape[1]]


def put(
    weight: Shaped[Tensor, "rows cols"], indices: Int[Tensor, "positions"], values: Shaped[Tensor, "positions"]
) -> None:
    """Give a weight values at some positions, in place."""
    weight[indices // weight.shape[1], indices % weight.shape[1]] = values


def named(lists: Mapping[str, Positions]) -> dict[str, Tensor]:
    """The fields of lists, as they are saved: each tensor is called `list.field`."""
    return {f"{name}.{field}": tensor for name, each in lists.items() for field, tensor in each.tensors().items()}


def fields_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of one list, out of what `named` made."""
    return {field: tensor for key, tensor in tensors.items() for of, _, field in [key.partition(".")] if of == name}
