"""AdamW over the active values of one linear, each with its own age.

Weight decay pulls a value to its base, so the delta to 0 and never the weight. A grown position does not start from
nothing: its moments come from the gradients that its window saw (as in SpIEL, arXiv 2401.16405, section 3.2), since a
first step from empty moments has full size whatever the gradient was worth.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from seft.repair.active import Active
from seft.repair.window import Candidates

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8
OLDEST = torch.iinfo(torch.int16).max
"""Ages stop here; bias correction has long become 1."""


def step(active: Active, gradient: Float[Tensor, "positions"], rate: float, weight_decay: float) -> None:
    """One step, in place (Loshchilov & Hutter 2019, algorithm 2, the decay towards the base)."""
    active.ages.add_(1).clamp_(max=OLDEST - 1)
    active.means.lerp_(gradient, 1 - MEAN_DECAY)
    active.squares.lerp_(gradient**2, 1 - SQUARE_DECAY)
    mean = active.means / _gathered(active.ages, MEAN_DECAY, gradient.dtype)
    square = active.squares / _gathered(active.ages, SQUARE_DECAY, gradient.dtype)
    active.values.sub_(active.deltas, alpha=rate * weight_decay)
    active.values.addcdiv_(mean, square.sqrt_().add_(EPSILON), value=-rate)


def seed(grown: Active, candidates: Candidates, observed: int, pieces: int) -> None:
    """Moments of grown positions, in place, from `observed` micro-batches, `pieces` of them to a step.

    A step's gradient is the sum of its micro-batches' gradients, so its mean square is the mean squared plus `pieces`
    variances. The moments are set so that bias correction by age gives exactly these two.
    """
    mean, mean_square = candidates.sums / observed, candidates.squares / observed
    variance = (mean_square - mean**2).clamp_(min=0)
    grown.ages.fill_(min(-(-observed // pieces), OLDEST - 1))
    grown.means.copy_(mean * pieces * _gathered(grown.ages, MEAN_DECAY, mean.dtype))
    grown.squares.copy_(((mean * pieces) ** 2 + variance * pieces) * _gathered(grown.ages, SQUARE_DECAY, mean.dtype))


def _gathered(ages: Tensor, decay: float, dtype: torch.dtype) -> Float[Tensor, "positions"]:
    """How much weight an average with this decay has gathered at these ages: `1 - decay ** age`."""
    return -torch.expm1(ages.to(dtype) * math.log(decay))
