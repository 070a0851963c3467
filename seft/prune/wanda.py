"""Wanda (Sun et al. 2023, arXiv 2306.11695, section 3): a weight's absolute value times the norm of its inputs."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare
from seft.prune.pruner import Scored
from seft.prune.statistics import Norms


class Wanda(Scored):
    """Scores a weight by `|W|` times the l2 norm of its input column, compared within an output row."""

    compare: ClassVar[Compare] = Compare.ROW

    @staticmethod
    def score(weight: Float[Tensor, "rows cols"], inputs: Norms) -> Float[Tensor, "rows cols"]:
        """Return the importance of each weight. Raises PruneError if the inputs were missing or not finite."""
        return importance(weight, inputs.norms())


def importance(weight: Float[Tensor, "rows cols"], norms: Float[Tensor, "cols"]) -> Float[Tensor, "rows cols"]:
    """Return the importance of each weight (equation 1 of the paper), in float32."""
    return weight.abs().float() * norms
