"""Magnitude pruning: the smallest weights become zero, compared in the whole linear. It looks at no text."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule


class Magnitude:
    """Prunes one weight by `|W|`."""

    needs_text: ClassVar[bool] = False
    compare: ClassVar[Compare] = Compare.LAYER

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, _: PruneConfig) -> None:
        self._weight, self._rule = weight, rule

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Nothing to learn from inputs."""

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The pruned weight."""
        mask = self._rule.choose(self._weight.abs())
        return self._weight.masked_fill(mask | (self._weight == 0), 0.0)
