"""The rise of the sparsity during training: how many weights are zero after an event, and which ones.

The sparsity rises cubically over a fraction of the steps (Zhu & Gupta 2017, arXiv 1710.01878, section 3). The weights
with the smallest estimated effect on the loss become zero: W^2 times the curvature (LeCun et al. 1990, Optimal Brain
Damage). The curvature is the mean square of the output's gradient times the mean square of the input (Martens & Grosse
2015, section 3). No function here changes a weight.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Compare, Pattern, PruneConfig
from seft.prune.mask import Rule, smallest_in_groups, smallest_overall, zeros_first


def last_event(pruned: PruneConfig, steps: int) -> int:
    """Return the step of the last event of the rise, after which the model has its final sparsity."""
    return max(1, math.floor(pruned.rise * steps))


def is_event(pruned: PruneConfig, steps: int, step: int) -> bool:
    """Return whether the sparsity rises after a step: every `rise_interval` steps, and at the end of the rise."""
    last = last_event(pruned, steps)
    return step == last or (step < last and step % pruned.rise_interval == 0)


def zeros_at(start: int, end: int, progress: float) -> int:
    """Return the number of zeros at a fraction of the rise, from `start` at 0 to `end` at 1, cubically."""
    return start + round((end - start) * (1 - (1 - progress) ** 3))


def importance(
    weight: Float[Tensor, "rows cols"], inputs: Float[Tensor, "cols"], outputs: Float[Tensor, "rows"]
) -> Float[Tensor, "rows cols"]:
    """Return the estimated loss increase if a weight became zero, up to a factor that all weights share.

    `inputs` and `outputs` are sums over tokens of the squares of each input and of each output's gradient.
    """
    return zeros_first(weight.to(inputs.dtype).square().mul_(inputs).mul_(outputs[:, None]), weight)


def choose(
    score: Float[Tensor, "rows cols"], zeros: int, compare: Compare, pattern: Pattern = UNSTRUCTURED
) -> Bool[Tensor, "rows cols"]:
    """Return the mask of `zeros` entries with the smallest scores. Present zeros have the score -1 and come first.

    In an N:M pattern every group has at most M - N zeros, except present ones. [ours] Groups fill up one weight at a
    time during the rise; the least important of all weights that a group may lose go first.
    """
    if pattern.grouped:
        allowed = smallest_in_groups(score, pattern) | (score < 0)
        return smallest_overall(score.masked_fill(~allowed, torch.inf), min(zeros, int(allowed.sum())))
    return Rule(zeros, Compare.ROW if compare is Compare.ROW else Compare.LAYER).choose(score)


def split_over_model(scores: Sequence[Callable[[], Float[Tensor, "rows cols"]]], zeros: int) -> list[int]:
    """Return how many zeros each matrix gets if the `zeros` smallest scores of all matrices become zero.

    `scores` has one function per matrix, because all scores together may not fit into memory. Each is called several
    times. Present zeros have the score -1 and come first. Of equal scores those of the first matrices are chosen.
    """
    present = [int((score() < 0).sum()) for score in scores]
    wanted = zeros - sum(present)
    if wanted <= 0:
        return present
    # Find the score with the rank `wanted` from counts of the upper half of the bits of all scores, and then of the
    # lower half. Scores are not negative, so their bits have the same order.
    upper, before = _find_bin(sum(_histogram(_bits(score()) >> 16) for score in scores), wanted)
    lower, inside = _find_bin(sum(_histogram(_lower_bits(score(), upper)) for score in scores), wanted - before)
    last, ties = (upper << 16) + lower, wanted - before - inside
    counts = []
    for score, already in zip(scores, present, strict=True):
        bits = _bits(score())
        equal = min(ties, int((bits == last).sum()))
        counts.append(already + int((bits < last).sum()) + equal)
        ties -= equal
    return counts


def _bits(score: Float[Tensor, "rows cols"]) -> Int[Tensor, "nonzeros"]:
    """Return the scores that are not negative, rounded to float32, as whole numbers in the same order."""
    return score[score >= 0].float().view(torch.int32)


def _lower_bits(score: Float[Tensor, "rows cols"], upper: int) -> Int[Tensor, "some"]:
    bits = _bits(score)
    return bits[bits >> 16 == upper] & 0xFFFF


def _histogram(values: Int[Tensor, "values"]) -> Int[Tensor, "bins"]:
    return torch.bincount(values, minlength=1 << 16)


def _find_bin(counts: Int[Tensor, "bins"] | int, wanted: int) -> tuple[int, int]:
    """Return the bin that contains the entry with the rank `wanted`, and the number of entries in the bins before."""
    assert isinstance(counts, Tensor)
    ends = counts.cumsum(0)
    place = int(torch.searchsorted(ends, wanted))
    return place, int(ends[place] - counts[place])
