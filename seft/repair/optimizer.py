"""AdamW over the trained values of one linear; those of an active set have each its own age.

Weight decay pulls an active value to its base, so the delta to 0 and never the weight. A grown position does not start
from nothing: its moments come from the gradients that its window saw (as in SpIEL, arXiv 2401.16405, section 3.2),
since a first step from empty moments has full size whatever the gradient was worth.

[ours] Where gradients are larger than is typical of the linear, steps are smaller in proportion: a position that moves
the loss more needs to move less, and one rate serves those that growth prefers and those that it draws by luck.
"""

import math
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.repair.active import Active
from seft.repair.window import Watched

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8
OLDEST = torch.iinfo(torch.int16).max
"""Ages stop here; bias correction has long become 1."""


class Trained(Protocol):
    """Values with Adam's memory of their gradients. There is one age for each value, or one for all."""

    @property
    def values(self) -> Float[Tensor, "values"]:
        """What is trained."""

    @property
    def deltas(self) -> Float[Tensor, "values"]:
        """What weight decay pulls to zero."""

    @property
    def means(self) -> Float[Tensor, "values"]:
        """First moments."""

    @property
    def squares(self) -> Float[Tensor, "values"]:
        """Second moments."""

    @property
    def ages(self) -> Int[Tensor, "ages"]:
        """The number of gradients in the moments."""


def step(
    trained: Trained,
    gradient: Float[Tensor, "values"],
    rate: float,
    weight_decay: float,
    typical: Float[Tensor, ""] | float = math.inf,
) -> None:
    """One step, in place (Loshchilov & Hutter 2019, algorithm 2, the decay of the deltas).

    Where the root mean square of a value's gradient is above `typical`, its step is smaller by that ratio.
    """
    trained.ages.add_(1).clamp_(max=OLDEST - 1)
    trained.means.lerp_(gradient, 1 - MEAN_DECAY)
    trained.squares.lerp_(gradient**2, 1 - SQUARE_DECAY)
    mean = trained.means / _gathered(trained.ages, MEAN_DECAY, gradient.dtype)
    root = (trained.squares / _gathered(trained.ages, SQUARE_DECAY, gradient.dtype)).sqrt_().add_(EPSILON)
    mean *= (typical / root).clamp_(max=1)
    trained.values.sub_(trained.deltas, alpha=rate * weight_decay)
    trained.values.addcdiv_(mean, root, value=-rate)


def typical(sample: Watched, steps: int, pieces: int) -> Float[Tensor, ""]:
    """The root mean square of a step's gradient over a sample; 0 where there was none."""
    return _mean_square(sample, steps, pieces).sum().div(max(1, len(sample))).sqrt()


def seed(grown: Active, watched: Watched, steps: int, pieces: int) -> None:
    """Moments of grown positions, in place: bias correction by age gives the mean and mean square that were seen."""
    grown.ages.fill_(steps)
    mean, mean_square = watched.sums / steps, _mean_square(watched, steps, pieces)
    grown.means.copy_(mean * _gathered(grown.ages, MEAN_DECAY, mean.dtype))
    grown.squares.copy_(mean_square * _gathered(grown.ages, SQUARE_DECAY, mean.dtype))


def _mean_square(watched: Watched, steps: int, pieces: int) -> Float[Tensor, "positions"]:
    """Of a step's gradient, from a window of `steps` steps, each of `pieces` micro-batches.

    A step's gradient is the sum of its micro-batches' gradients, zero in those that sent an expert no token, so its
    mean square is the mean squared plus `pieces` variances.
    """
    mean = watched.sums / steps
    return mean**2 + (watched.squares / steps - mean**2 / pieces).clamp_(min=0)


def _gathered(ages: Tensor, decay: float, dtype: torch.dtype) -> Float[Tensor, "ages"]:
    """How much weight an average with this decay has gathered at these ages: `1 - decay ** age`."""
    return -torch.expm1(ages.to(dtype) * math.log(decay))
