"""RIA (Zhang et al. 2024, "Plug-and-Play", equations 2 and 3): how much of its row and its column a weight makes up.

A channel whose weights are small everywhere is not lost, because each weight is judged by its share of it.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule, zeros_first
from seft.prune.statistics import Norms

EXPONENT = 0.5  # of the activations; the paper's choice


class RIA:
    """Prunes one weight by relative importance times activations, compared in the whole linear."""

    needs_text: ClassVar[bool] = True
    compare: ClassVar[Compare] = Compare.LAYER

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, _: PruneConfig) -> None:
        self._weight, self._rule = weight, rule
        self._inputs = Norms(weight)

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Add the squares of some inputs."""
        self._inputs.see(inputs)

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The pruned weight; PruneError where the inputs were not finite, or there were none."""
        score = importance(self._weight, self._inputs.norms())
        mask = self._rule.choose(zeros_first(score, self._weight))
        return self._weight.masked_fill(mask | (self._weight == 0), 0.0)


def importance(weight: Float[Tensor, "rows cols"], norms: Float[Tensor, "cols"]) -> Float[Tensor, "rows cols"]:
    """The share in its row plus the share in its column, times the input norm to the power of `EXPONENT`."""
    size = weight.abs().float()
    of_column, of_row = (size / size.sum(dim, keepdim=True).clamp_min(1e-30) for dim in (0, 1))
    return (of_column + of_row) * norms**EXPONENT
