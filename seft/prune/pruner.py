"""The interface of every pruner, and the base class of the pruners that only score weights."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule, zeros_first
from seft.prune.statistics import Batch, Gram, Norms


@runtime_checkable
class Pruner(Protocol):
    """Computes the pruned version of one weight matrix, once. Does not change the matrix. Its zeros stay zeros."""

    def observe(self, batch: Batch) -> None:
        """Add a batch of the linear's inputs to the statistics."""

    def prune(self) -> Float[Tensor, "rows cols"]:
        """Return the pruned weight matrix. Raises PruneError if the statistics of the inputs cannot be used."""


class Method(Pruner, Protocol):
    """A pruner that chooses all zeros itself. Other pruners change the zeros that a method has chosen.

    `compare` is the comparison that its paper uses, for the setting `auto`.
    """

    compare: ClassVar[Compare]

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, config: PruneConfig) -> None: ...


MUTED = 1e-16
"""Factor of the weights of inputs that are always zero. They become zero before other weights, and stay float32."""


class Corrected(ABC):
    """Base of the pruners that also correct the weights that remain, by the Hessian of the linear's error.

    The weights of an input that is zero for every token do not change this error. They become zero first, and those
    that do not become zero keep their values.
    """

    compare: ClassVar[Compare] = Compare.LAYER

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, config: PruneConfig) -> None:
        self._weight, self._rule, self._damping = weight, rule, config.damping
        self._inputs = Gram()
        self._dead: list[int] = []
        """Inputs that are zero for every token. They are known when `solve` is called."""

    def observe(self, batch: Batch) -> None:
        """Add a batch of the linear's inputs to the Hessian."""
        self._inputs.observe(batch)

    def prune(self) -> Float[Tensor, "rows cols"]:
        """Return the pruned and corrected weight matrix.

        Raises PruneError if the inputs were missing or not finite, or if the Hessian cannot be used.
        """
        self._dead = self._inputs.dead()
        weight = self._weight.to(torch.float32, copy=True)
        if self._dead:
            weight[:, self._dead] *= MUTED
        solved = self.solve(weight)
        pruned = solved.to(self._weight.dtype)
        if self._dead:
            zeros = solved[:, self._dead] == 0
            pruned[:, self._dead] = self._weight[:, self._dead].masked_fill(zeros, 0.0)
        return pruned

    @abstractmethod
    def solve(self, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """Return the pruned and corrected matrix for a float32 weight matrix, whose Hessian is that of the inputs."""


class Scored(ABC):
    """Sets the weights with the smallest scores to zero and leaves the others unchanged.

    A subclass defines the score, and the weights among which scores are compared.
    """

    compare: ClassVar[Compare]

    def __init__(self, weight: Float[Tensor, "rows cols"], rule: Rule, _: PruneConfig) -> None:
        self._weight, self._rule = weight, rule
        self._inputs = Norms(weight)

    def observe(self, batch: Batch) -> None:
        """Add a batch of the linear's inputs to the column norms."""
        self._inputs.observe(batch)

    def prune(self) -> Float[Tensor, "rows cols"]:
        """Return the pruned weight matrix.

        Raises PruneError if the score needs the inputs and they were missing or not finite.
        """
        score = self.score(self._weight, self._inputs)
        mask = self._rule.choose(zeros_first(score, self._weight))
        return self._weight.masked_fill(mask | (self._weight == 0), 0.0)

    @staticmethod
    @abstractmethod
    def score(weight: Float[Tensor, "rows cols"], inputs: Norms) -> Float[Tensor, "rows cols"]:
        """Return the importance of each weight, at least 0. `inputs` has the norms of the input columns."""
