"""Selects the entries with the largest scores, on a CPU faster than `topk` of torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

STRIDE = 61
"""One of this number of scores is in the sample that gives a bound. It is prime, so that the sample has all columns."""


def largest(scores: Float[Tensor, "entries"], count: int) -> Int[Tensor, "largest"]:
    """Return the places of the `count` largest scores, or of all if there are fewer, in any order.

    On a CPU, `topk` sorts pairs of score and place, which takes longer for more entries. So most of the smaller scores
    are left out first, by a bound from a sample. The bound is so low that too few scores remain only rarely; then
    `topk` sorts all.
    """
    if count >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    if scores.device.type != "cpu" or not 0 < count < len(scores) // 4:
        return scores.topk(count, sorted=False).indices
    sample = scores[::STRIDE]
    expected = count / STRIDE
    rank = round(expected + 4 * expected**0.5 + 4)
    bound = sample.topk(min(rank, len(sample)), sorted=False).values.min()
    places = (~(scores < bound)).nonzero().squeeze(1)  # NaN is the largest, as in `topk`
    if len(places) < count:
        return scores.topk(count, sorted=False).indices
    return places[scores[places].topk(count, sorted=False).indices]
