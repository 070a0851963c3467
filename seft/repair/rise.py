"""The rise of the sparsity during training: how many weights are zero after an event, and which ones.

The sparsity rises cubically over a fraction of the steps (Zhu & Gupta 2017, arXiv 1710.01878, section 3). The weights
with the smallest estimated effect on the loss become zero: W^2 times the curvature (LeCun et al. 1990, Optimal Brain
Damage). The curvature is the sum over a step's tokens of the squares of the output's gradient, times that of the input
(Martens & Grosse 2015, section 3); both are moving averages over steps. Output gradients are those of a mean over the
tokens, so the product estimates the curvature of the mean loss. If only some of the tokens reach an expert, the product
is multiplied by the number of all tokens and divided by that of its tokens. No function here changes a weight.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seft.config import MOST_SPARSE, UNSTRUCTURED, Compare, Pattern, PruneConfig
from seft.prune.mask import Rule, cubic_rise, smallest_in_groups, smallest_overall, zeros_first


def is_event(pruned: PruneConfig, steps: int, step: int) -> bool:
    """Return whether the sparsity rises after a step: every `rise_interval` steps, and at the end of the rise."""
    last = pruned.rise_end(steps)
    return step == last or (step < last and step % pruned.rise_interval == 0)


def zeros_at(start: int, end: int, progress: float) -> int:
    """Return the number of zeros at a fraction of the rise, from `start` at 0 to `end` at 1, cubically."""
    return start + round((end - start) * cubic_rise(progress))


def importance(
    weight: Float[Tensor, "rows cols"], inputs: Float[Tensor, "cols"], outputs: Float[Tensor, "rows"]
) -> Float[Tensor, "rows cols"]:
    """Return the estimated loss increase if a weight became zero, up to a factor that all weights share.

    `inputs` and `outputs` are moving averages of a step's sums over tokens of the squares of each input, and of each
    output's gradient, corrected for an expert. [ours] If they are zero, because no token reached an expert, the square
    of the weight counts.
    """
    if not outputs.any():
        inputs, outputs = torch.ones_like(inputs), torch.ones_like(outputs)
    return zeros_first(weight.to(inputs.dtype).square().mul_(inputs).mul_(outputs[:, None]), weight)


def zeros_in_pattern(weight: Float[Tensor, "rows cols"], pattern: Pattern) -> int:
    """Return how many zeros a matrix has if every group gets the zeros of the pattern and keeps those it has."""
    present = (weight == 0).reshape(-1, pattern.of).sum(1)
    return int(present.clamp(min=pattern.of - pattern.kept).sum())


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
    return Rule(zeros, compare).choose(score)


def protected(score: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """Return the scores with infinity for the most important weights, so that no linear gets too many zeros."""
    allowed = smallest_overall(score, int(MOST_SPARSE * score.numel())) | (score < 0)
    return score.masked_fill(~allowed, torch.inf)


def least_important(
    score: Float[Tensor, "rows cols"], chosen: Bool[Tensor, "rows cols"], count: int
) -> Bool[Tensor, "rows cols"]:
    """Return the mask of the `count` entries with the smallest scores among those in `chosen`."""
    return smallest_overall(score.masked_fill(~chosen, torch.inf), count)


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
    upper, before = _find_bin([_histogram(_bits(score()) >> 16) for score in scores], wanted)
    lower, inside = _find_bin([_histogram(_lower_bits(score(), upper)) for score in scores], wanted - before)
    last, ties = (upper << 16) + lower, wanted - before - inside
    counts = []
    for score, already in zip(scores, present, strict=True):
        bits = _bits(score())
        equal = min(ties, int((bits == last).sum()))
        counts.append(already + int(((bits >= 0) & (bits < last)).sum()) + equal)
        ties -= equal
    return counts


def _bits(score: Float[Tensor, "rows cols"]) -> Int[Tensor, "rows cols"]:
    """Return the scores, rounded to float32, as whole numbers in the same order. Those of present zeros are -1."""
    return score.float().view(torch.int32).masked_fill(score < 0, -1)


def _lower_bits(score: Float[Tensor, "rows cols"], upper: int) -> Int[Tensor, "rows cols"]:
    """Return the lower half of the bits of the scores whose upper half is `upper`, and -1 for the others."""
    bits = _bits(score)
    return (bits & 0xFFFF).masked_fill_(bits >> 16 != upper, -1)


def _histogram(values: Int[Tensor, "rows cols"]) -> Int[Tensor, "bins"]:
    """Count the values from 0 to 2^16 - 1. Ignores -1."""
    return torch.bincount(values.flatten() + 1, minlength=(1 << 16) + 1)[1:]


def _find_bin(counts: Sequence[Int[Tensor, "bins"]], wanted: int) -> tuple[int, int]:
    """Return the bin that contains the entry with the rank `wanted`, and the number of entries in the bins before."""
    total = torch.stack(list(counts)).sum(0)
    ends = total.cumsum(0)
    place = int(torch.searchsorted(ends, wanted))
    return place, int(ends[place] - total[place])
