"""Wanda (Sun et al. 2023, arXiv 2306.11695, section 3): weights times the size of the activations that they meet."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seft.config import PruneConfig
from seft.errors import PruneError
from seft.prune.mask import smallest, zeros_first


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
        if not self._squares.isfinite().all():
            raise PruneError("inputs must be finite; some are not. Check the model's weights and dtype.")
        if not self._squares.any():
            raise PruneError("inputs must not be all zero; no calibration token reached it. Give more text.")
        return by_wanda(self._weight, self._squares.sqrt(), self._sparsity)


def by_wanda(
    weight: Float[Tensor, "rows cols"], norms: Float[Tensor, "cols"], sparsity: float
) -> Float[Tensor, "rows cols"]:
    """`int(cols * sparsity)` entries of every row are zero, or as many as were before where those are more."""
    mask = smallest(zeros_first(weight.abs().float() * norms, weight), sparsity)
    return torch.where(mask | (weight == 0), 0.0, weight)
