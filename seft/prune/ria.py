"""RIA (Zhang et al. 2024, "Plug-and-Play", equations 2 and 3): a weight's fraction of its row sum and its column sum.

Each weight is compared with its own row and column, so a channel that has only small weights is not lost.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare
from seft.prune.pruner import Scored
from seft.prune.statistics import Norms

EXPONENT = 0.5  # of the activations; the paper's choice


class RIA(Scored):
    """Scores a weight by its relative importance times a power of the input norm, compared over the whole linear."""

    compare: ClassVar[Compare] = Compare.LAYER

    @staticmethod
    def score(weight: Float[Tensor, "rows cols"], inputs: Norms) -> Float[Tensor, "rows cols"]:
        """Return the importance of each weight. Raises PruneError if the inputs were missing or not finite."""
        return importance(weight, inputs.norms())


def importance(weight: Float[Tensor, "rows cols"], norms: Float[Tensor, "cols"]) -> Float[Tensor, "rows cols"]:
    """Return `|W|` / row sum + `|W|` / column sum, times the input norm to the power `EXPONENT`."""
    size = weight.abs().float()
    of_column, of_row = (size / size.sum(dim, keepdim=True).clamp_min(1e-30) for dim in (0, 1))
    return (of_column + of_row) * norms**EXPONENT
