"""The choice that all pruners share: how many entries of a weight become zero, and among which they are chosen."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import UNSTRUCTURED, Compare, Pattern


@dataclass(frozen=True, slots=True)
class Rule:
    """`zeros` entries of one weight become zero: compared within each row or all together, in the given pattern.

    An N:M pattern decides by itself how many.
    """

    zeros: int
    compare: Compare
    pattern: Pattern = UNSTRUCTURED

    def choose(self, score: Float[Tensor, "rows cols"]) -> Bool[Tensor, "rows cols"]:
        """The entries with the smallest scores; of equals the first ones."""
        if self.pattern.grouped:
            return smallest_in_groups(score, self.pattern)
        if self.compare is Compare.ROW:
            return smallest_per_row(score, split_evenly(self.zeros, len(score)))
        return smallest_overall(score, self.zeros)


def smallest_overall(score: Float[Tensor, "rows cols"], count: int) -> Bool[Tensor, "rows cols"]:
    """The `count` smallest scores, exactly so many; of equals the first ones."""
    if not count:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.flatten()
    # Selecting is many times faster than sorting where threads are few; on CUDA it is not, and counts as random.
    last = flat.sort().values[count - 1] if flat.is_cuda else flat.kthvalue(count).values
    chosen = flat < last
    equals = (flat == last).nonzero()[: count - int(chosen.sum()), 0]
    return chosen.index_fill(0, equals, value=True).view_as(score)


def smallest_per_row(score: Float[Tensor, "groups size"], counts: Tensor) -> Bool[Tensor, "groups size"]:
    """The `counts` smallest scores of every group, exactly so many; of equals the first ones."""
    order = score.argsort(dim=1, stable=True)
    chosen = torch.arange(score.shape[1], device=score.device) < counts.to(score.device)[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen)


def smallest_in_groups(score: Float[Tensor, "rows cols"], pattern: Pattern) -> Bool[Tensor, "rows cols"]:
    """All but the `kept` largest of every `of` neighbours in a row."""
    groups = score.reshape(-1, pattern.of)
    return smallest_per_row(groups, torch.full((len(groups),), pattern.of - pattern.kept)).view_as(score)


def overfull_groups(weight: Float[Tensor, "rows cols"], pattern: Pattern) -> int:
    """How many groups of a weight have more nonzeros than the pattern allows."""
    return int(((weight != 0).reshape(-1, pattern.of).sum(1) > pattern.kept).sum())


def split_evenly(count: int, parts: int) -> Tensor:
    """`count` as evenly over so many parts as whole numbers allow, the larger ones spread over all."""
    ends = torch.arange(parts + 1) * count // parts
    return ends.diff()


def zeros_first(score: Float[Tensor, "rows cols"], weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """The scores, none of them negative, with weights that are zero already ahead of all others."""
    return score.masked_fill(weight == 0, -1.0)
