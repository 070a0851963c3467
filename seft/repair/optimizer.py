"""AdamW over trained values. Each active position has its own age, the number of its gradients.

Weight decay pulls an active value to its base: the difference goes to 0, not the weight. A grown position starts with
moments from the gradients in the steps before its event (as in SpIEL, arXiv 2401.16405, section 3.2). With empty
moments the first step would have full size, however small the gradient.

[ours] If a gradient is larger than typical for the linear, the step is smaller in proportion: a position with more
effect on the loss needs to move less. So one learning rate suits both the positions with large gradients, which growth
prefers, and the other positions that growth draws at random.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from seft.repair.active import Active
from seft.repair.rounding import round_by_hash
from seft.repair.values import Values
from seft.repair.window import GradientSums

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8
MAX_AGE = torch.iinfo(torch.int16).max - 1
"""Largest age. A step adds 1 before it limits the age, and the sum still fits int16. The bias correction reaches 1 long
before this age.

The rounding of moments depends on the age. At the largest age, the bfloat16 moments of a position without gradients are
rounded the same way in every step, so they stop falling.
"""

Trained = Active | Values
"""Trained values with Adam's moments. There is one age per value, or one age for all values."""


def step(
    trained: Trained,
    gradient: Float[Tensor, "values"],
    rate: float,
    weight_decay: float,
    typical: Float[Tensor, "values"] | float = math.inf,
) -> None:
    """Take one AdamW step in place (Loshchilov & Hutter 2019, algorithm 2, with decay of the deltas).

    If the root mean square of a value's gradients is larger than its `typical`, the step of this value is divided by
    their ratio.
    """
    trained.ages.add_(1).clamp_(max=MAX_AGE)
    mean = _average(trained, trained.means, gradient, MEAN_DECAY)
    root = _average(trained, trained.squares, gradient**2, SQUARE_DECAY).sqrt_().add_(EPSILON)
    mean *= (typical / root).clamp_(max=1)
    trained.values.sub_(trained.deltas, alpha=rate * weight_decay)
    trained.values.addcdiv_(mean, root, value=-rate)


def typical_gradient(sample: GradientSums, steps: int, pieces: int) -> Float[Tensor, ""]:
    """Return the root mean square of a step's gradient over a sample of positions; 0 if the sample is empty.

    The sample has gradients of `steps` steps of `pieces` micro-batches each.
    """
    return _mean_square(sample, steps, pieces).sum().div(max(1, len(sample))).sqrt()


def seed_moments(grown: Active, window: GradientSums, steps: int, pieces: int) -> None:
    """Set the moments of grown positions in place, from the gradients collected before the event.

    They are scaled so that the bias correction by age gives the mean and the mean square of these gradients.
    """
    grown.ages.fill_(steps)
    mean, mean_square = window.sums / steps, _mean_square(window, steps, pieces)
    grown.means.copy_(mean * _bias_correction(grown.ages, MEAN_DECAY, mean.dtype))
    grown.squares.copy_(mean_square * _bias_correction(grown.ages, SQUARE_DECAY, mean.dtype))


def _mean_square(window: GradientSums, steps: int, pieces: int) -> Float[Tensor, "positions"]:
    """Return the mean square of a step's gradient per position, from `steps` steps of `pieces` micro-batches each.

    A step's gradient is the sum of the gradients of its micro-batches. A micro-batch in which an expert got no token
    counts with gradient zero. So the mean square is the squared mean of the step's gradient plus `pieces` times the
    variance of a micro-batch's gradient.
    """
    mean = window.sums / steps
    return mean**2 + (window.squares / steps - mean**2 / pieces).clamp_(min=0)


def _average(
    trained: Trained, moments: Float[Tensor, "values"], new: Float[Tensor, "values"], decay: float
) -> Float[Tensor, "values"]:
    """Add new values to the moments in place. Returns the moments with bias correction, in the dtype of `new`."""
    exact = moments.to(new.dtype).lerp_(new, 1 - decay)
    corrected = exact / _bias_correction(trained.ages, decay, new.dtype)
    if exact is not moments:  # the moments are narrower
        moments.copy_(round_by_hash(exact, moments.dtype, trained.values, trained.ages))
    return corrected


def _bias_correction(ages: Tensor, decay: float, dtype: torch.dtype) -> Float[Tensor, "ages"]:
    """Return Adam's bias correction at these ages: `1 - decay ** age`."""
    return -torch.expm1(ages.to(dtype) * math.log(decay))
