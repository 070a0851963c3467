"""The pruners by name, and how one is made for a weight. Adding a pruner is one file and one line here."""

from jaxtyping import Float
from torch import Tensor

from seft.config import Allocation, Compare, PruneConfig, PruneMethod, Refinement
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
}


def make_pruner(weight: Float[Tensor, "rows cols"], zeros: int, config: PruneConfig) -> Pruner:
    """The pruner that `config` asks for, of a weight that is to have so many zeros."""
    inner = PRUNERS[config.method](weight, Rule(zeros, comparison(config), config.pattern), config)
    return DSnoT(weight, inner, config.pattern) if config.refine is Refinement.DSNOT else inner


def comparison(config: PruneConfig) -> Compare:
    """Row or layer: what was asked for, or what the method's paper does."""
    return PRUNERS[config.method].compare if config.compare is Compare.AUTO else config.compare


def text_users(config: PruneConfig) -> list[str]:
    """What of `config` looks at calibration text; nothing where no text is needed."""
    method = [str(config.method)] if PRUNERS[config.method].needs_text else []
    more = (Refinement.DSNOT, config.refine), (Allocation.OWL, config.allocation)
    after = ["reconstruction"] if config.reconstruct_epochs else []
    return method + [str(reader) for reader, chosen in more if chosen is reader] + after
