"""What pruners share: the choice of the smallest scores, and a look at whether the inputs tell anything."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.errors import PruneError


def smallest(score: Float[Tensor, "groups size"], share: float) -> Bool[Tensor, "groups size"]:
    """The `int(size * share)` smallest scores of every group, exactly so many; of equals the first ones."""
    count = int(score.shape[1] * share)
    order = score.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, value=True)


def usable(squares: Float[Tensor, "cols"]) -> Float[Tensor, "cols"]:
    """The sums of squares of the input columns, if they tell anything: PruneError where not finite, or all zero."""
    if not squares.isfinite().all():
        raise PruneError("inputs must be finite; some are not. Check the model's weights and dtype.")
    if not squares.any():
        raise PruneError("inputs must not be all zero; no calibration token reached it. Give more text.")
    return squares
