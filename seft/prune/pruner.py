"""The interface of every pruner, and the base of those that only score each weight."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule, zeros_first
from seft.prune.statistics import Norms


@runtime_checkable
class Pruner(Protocol):
    """Prunes one weight, once. Reads the weight and does not change it; zeros stay zeros."""

    def observe(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Add some inputs of the linear to the statistics."""

    def prune(self) -> Float[Tensor, "rows cols"]:
        """Return the pruned weight. Raises PruneError if the statistics of the inputs cannot be used."""


class Method(Pruner, Protocol):
    """A pruner with its own criterion.

    `needs_text` is True if it uses calibration text. `compare` is the choice of its paper, used for `auto`.
    """

    needs_text: ClassVar[bool]
    compare: ClassVar[Compare]

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, config: PruneConfig) -> None: ...


class Scored(ABC):
    """Zeroes the weights with the smallest scores and leaves the others as they are.

    A subclass says what a score is, over which weights scores are compared, and whether it needs text.
    """

    needs_text: ClassVar[bool] = True
    compare: ClassVar[Compare]

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, _: PruneConfig) -> None:
        self._weight, self._rule = weight, rule
        self._inputs = Norms(weight)

    def observe(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Add the squares of some inputs."""
        self._inputs.observe(inputs)

    def prune(self) -> Float[Tensor, "rows cols"]:
        """Return the pruned weight. Raises PruneError if the inputs were missing or not finite."""
        score = self.score(self._weight, self._inputs)
        mask = self._rule.choose(zeros_first(score, self._weight))
        return self._weight.masked_fill(mask | (self._weight == 0), 0.0)

    @staticmethod
    @abstractmethod
    def score(weight: Float[Tensor, "rows cols"], inputs: Norms) -> Float[Tensor, "rows cols"]:
        """Return the importance of each weight, at least 0."""
