"""The pruning methods by name, and a function that creates a pruner."""

from jaxtyping import Float
from torch import Tensor

from seft.config import Compare, PruneConfig, PruneMethod, Refinement
from seft.prune.admm import ADMM
from seft.prune.alps import ALPS
from seft.prune.dsnot import DSnoT
from seft.prune.magnitude import Magnitude
from seft.prune.mask import Rule
from seft.prune.pruner import Method, Pruner
from seft.prune.ria import RIA
from seft.prune.sparsegpt import SparseGPT
from seft.prune.wanda import Wanda

PRUNERS: dict[PruneMethod, type[Method]] = {
    PruneMethod.MAGNITUDE: Magnitude,
    PruneMethod.WANDA: Wanda,
    PruneMethod.RIA: RIA,
    PruneMethod.SPARSEGPT: SparseGPT,
    PruneMethod.ALPS: ALPS,
    PruneMethod.ADMM: ADMM,
}


def make_pruner(
    weight: Float[Tensor, "rows cols"],
    zeros: int,
    config: PruneConfig,
    factors: Float[Tensor, "rows 1"] | None = None,
) -> Pruner:
    """Return the pruner that `config` describes, for a weight matrix that gets `zeros` zeros.

    `factors` are the row factors of `Rule`.
    """
    inner = PRUNERS[config.method](weight, Rule(zeros, comparison(config), config.pattern, factors), config)
    return DSnoT(weight, inner, config.pattern) if config.refine is Refinement.DSNOT else inner


def comparison(config: PruneConfig) -> Compare:
    """Return the weights among which importance is compared.

    `auto` means the choice of the method's paper. With the schedule `gradual` it means all linears of the model, unless
    the pattern or the allocation determines the zeros of each linear.
    """
    if config.compare is not Compare.AUTO:
        return config.compare
    if not config.gradual:
        return PRUNERS[config.method].compare
    return Compare.MODEL if config.compares_model else Compare.LAYER
