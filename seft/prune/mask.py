"""The choice that all pruners share: which entries have the smallest scores."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def smallest(score: Float[Tensor, "groups size"], share: float) -> Bool[Tensor, "groups size"]:
    """The `int(size * share)` smallest scores of every group, exactly so many; of equals the first ones."""
    count = int(score.shape[1] * share)
    order = score.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, value=True)


def zeros_first(score: Float[Tensor, "rows cols"], weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """The scores, none of them negative, with weights that are zero already ahead of all others."""
    return score.masked_fill(weight == 0, -1.0)
