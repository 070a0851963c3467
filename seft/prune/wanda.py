"""Wanda (Sun et al. 2023, arXiv 2306.11695, section 3): weights times the size of the activations that they meet."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seft.config import PruneConfig
from seft.prune.mask import smallest, usable


class Wanda:
    """Prunes one linear by `|W|` times the l2 norm of the input column, compared within an output row."""

    needs_text: ClassVar[bool] = True

    def __init__(self, linear: nn.Linear, config: PruneConfig) -> None:
        self._weight, self._sparsity = linear.weight.detach(), config.sparsity
        self._squares = torch.zeros(linear.in_features, device=linear.weight.device)

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Add the squares of some inputs."""
        self._squares += inputs.reshape(-1, inputs.shape[-1]).float().square().sum(0)

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The pruned weight; PruneError where the inputs were not finite, or there were none."""
        return by_wanda(self._weight, usable(self._squares).sqrt(), self._sparsity)


def by_wanda(
    weight: Float[Tensor, "rows cols"], norms: Float[Tensor, "cols"], sparsity: float
) -> Float[Tensor, "rows cols"]:
    """`int(cols * sparsity)` entries of every row are zero, or as many as were before where those are more."""
    zeros = weight == 0
    mask = smallest((weight.abs().float() * norms).masked_fill(zeros, -1.0), sparsity)
    return torch.where(mask | zeros, 0.0, weight)
