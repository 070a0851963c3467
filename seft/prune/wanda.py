"""Wanda (Sun et al. 2023, arXiv 2306.11695, section 3): weights times the size of the activations that they meet."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule, zeros_first
from seft.prune.statistics import Norms


class Wanda:
    """Prunes one weight by `|W|` times the l2 norm of the input column, compared within an output row."""

    needs_text: ClassVar[bool] = True
    compare: ClassVar[Compare] = Compare.ROW

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
    """Equation 1 of the paper, in float32."""
    return weight.abs().float() * norms
