"""The rise of the sparsity during training: how many weights are zero after an event, and which ones.

The sparsity rises cubically over a fraction of the steps (Zhu & Gupta 2017, arXiv 1710.01878, section 3). The weights
with the smallest importance (`seft.prune.curvature`) become zero. Its sums over the tokens of a step are replaced by
moving averages over steps. The output gradients are gradients of a mean over the tokens, so the product estimates the
curvature of the mean loss. If only some of the tokens reach an expert, the product is multiplied by the number of all
tokens and divided by the number of the expert's tokens. No function here changes a weight.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import UNSTRUCTURED, Compare, Pattern, PruneConfig
from seft.prune.mask import Rule, cubic_rise, smallest_in_groups, smallest_overall


def is_event(pruned: PruneConfig, steps: int, step: int) -> bool:
    """Return whether the sparsity rises after a step: every `rise_interval` steps, and at the end of the rise."""
    last = pruned.rise_end(steps)
    return step == last or (step < last and step % pruned.rise_interval == 0)


def zeros_at(start: int, end: int, progress: float) -> int:
    """Return the number of zeros at a fraction of the rise, from `start` at 0 to `end` at 1, cubically."""
    return start + round((end - start) * cubic_rise(progress))


def zeros_in_pattern(weight: Float[Tensor, "rows cols"], pattern: Pattern) -> int:
    """Return how many zeros a matrix has if every group gets the zeros of the pattern and keeps its present zeros."""
    present = (weight == 0).reshape(-1, pattern.of).sum(1)
    return int(present.clamp(min=pattern.of - pattern.kept).sum())


def choose(
    score: Float[Tensor, "rows cols"], zeros: int, compare: Compare, pattern: Pattern = UNSTRUCTURED
) -> Bool[Tensor, "rows cols"]:
    """Return the mask of `zeros` entries with the smallest scores. Present zeros have the score -1 and come first.

    In an N:M pattern no group gets more than M - N zeros; present zeros stay. [ours] During the rise, groups get their
    zeros one at a time: of all weights that the pattern lets become zero, the least important ones come first.
    """
    if pattern.grouped:
        allowed = smallest_in_groups(score, pattern) | (score < 0)
        return smallest_overall(score.masked_fill(~allowed, torch.inf), min(zeros, int(allowed.sum())))
    return Rule(zeros, compare).choose(score)
