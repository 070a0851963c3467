"""Magnitude pruning: the smallest weights of a linear become zero, compared over all its rows. Needs no text."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare
from seft.prune.pruner import Scored
from seft.prune.statistics import Batch, Norms


class Magnitude(Scored):
    """Scores each weight by its absolute value `|W|`."""

    compare: ClassVar[Compare] = Compare.LAYER

    def observe(self, batch: Batch) -> None:
        """Do nothing: the score does not depend on the inputs."""

    @staticmethod
    def score(weight: Float[Tensor, "rows cols"], _: Norms) -> Float[Tensor, "rows cols"]:
        """Return the absolute values `|W|`, in the dtype of the weights."""
        return weight.abs()
