"""Magnitude pruning: the smallest weights of the whole linear become zero. It looks at no text."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seft.config import PruneConfig
from seft.prune.mask import smallest


class Magnitude:
    """Prunes one linear by `|W|`, compared within the linear."""

    needs_text: ClassVar[bool] = False

    def __init__(self, linear: nn.Linear, config: PruneConfig) -> None:
        self._weight, self._sparsity = linear.weight, config.sparsity

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Nothing to learn from inputs."""

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The pruned weight."""
        return by_magnitude(self._weight.detach(), self._sparsity)


def by_magnitude(weight: Float[Tensor, "rows cols"], sparsity: float) -> Float[Tensor, "rows cols"]:
    """`int(rows * cols * sparsity)` entries are zero, or as many as were before where those are more."""
    mask = smallest(weight.abs().view(1, -1), sparsity).view_as(weight)
    return torch.where(mask | (weight == 0), 0.0, weight)
