"""The rule that all pruners share: how many entries of a weight matrix become zero, and which entries are compared."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import UNSTRUCTURED, Compare, Pattern
from seft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rule:
    """Sets `zeros` entries of one weight matrix to zero, compared within each row or over the whole matrix.

    An N:M pattern determines the number of zeros by itself; `zeros` and `compare` are then ignored. If `factors` are
    given, the scores of a row are multiplied by its factor before they are compared with those of other rows.
    """

    zeros: int
    compare: Compare
    pattern: Pattern = UNSTRUCTURED
    factors: Float[Tensor, "rows 1"] | None = None

    def choose(self, score: Float[Tensor, "rows cols"]) -> Bool[Tensor, "rows cols"]:
        """Return the mask of the entries to set to zero, which have the smallest scores.

        A score is proportional to the weight, or negative for a zero. Of equal scores the first are chosen.
        """
        if self.pattern.grouped:
            return smallest_in_groups(score, self.pattern)
        if self.compare is Compare.ROW:
            return smallest_per_row(score, self.zeros)
        return smallest_overall(self.weighted(score), self.zeros)

    def weighted(self, score: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """Return the scores as they are compared with those of other rows."""
        return score if self.factors is None else score * self.factors

    def partial(self, fraction: float) -> "Rule":
        """Return the rule that sets `fraction` of the zeros.

        The number of zeros is rounded down. In a group of an N:M pattern it is rounded to the nearest whole number.
        """
        if self.pattern.grouped:
            of = self.pattern.of
            return replace(self, pattern=Pattern(of - round(fraction * (of - self.pattern.kept)), of))
        return replace(self, zeros=int(fraction * self.zeros))


def smallest_overall(score: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Return the mask of exactly `count` entries with the smallest scores. Of equal scores the first are chosen.

    On a GPU, the host does not wait for a result.
    """
    if not count:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.detach().flatten()
    if flat.device.type == "cpu":
        return _smallest_on_cpu(flat.to(torch.promote_types(flat.dtype, torch.float32)), count).view_as(score)
    last = flat.sort().values[count - 1]
    smaller, equal = flat < last, flat == last
    first = equal.cumsum(0, dtype=torch.int32) <= count - smaller.sum()
    return (smaller | (equal & first)).view_as(score)


def _smallest_on_cpu(flat: Float[Tensor, "size"], count: int) -> Bool[Tensor, "size"]:
    """Return the same mask as `smallest_overall`, by NumPy, which is faster than torch on a CPU."""
    # For a million values, NumPy sorts partly in 2 ms on one thread and compares in 0.1 ms. torch.kthvalue needs 12 ms,
    # torch.sort 90 ms, and a comparison 0.6 ms.
    values = flat.numpy()
    last = np.partition(values, count - 1)[count - 1]
    chosen = values <= last
    surplus = np.count_nonzero(chosen) - count
    if surplus:
        chosen[np.flatnonzero(values == last)[-surplus:]] = False
    return torch.from_numpy(chosen)


def as_float(mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mask in float32, with 1 for chosen entries.

    On a CPU this and a product of float32 take a tenth of the time that torch needs for a product with a mask.
    """
    return mask.view(torch.uint8).float()


def smallest_per_row(score: Float[Tensor, "rows cols"], count: int) -> Bool[Tensor, "rows cols"]:
    """Return the mask of exactly `count` entries: those with the smallest scores of each row.

    Every row gets `count // rows` entries. The rest are one more entry in some rows: the rows whose next entry has the
    smallest score. Of equal scores the first are chosen.
    """
    each, more = divmod(count, len(score))
    order = score.argsort(dim=1, stable=True)
    first = torch.zeros_like(score, dtype=torch.bool)
    first[:, :each] = True
    if more:
        first[:, each] = smallest_overall(score.gather(1, order[:, each : each + 1]).squeeze(1), more)
    return torch.zeros_like(first).scatter_(1, order, first)


def smallest_in_groups(score: Float[Tensor, "rows cols"], pattern: Pattern) -> Bool[Tensor, "rows cols"]:
    """Return the mask of all entries except the largest `pattern.kept` of every `pattern.of` neighbours in a row."""
    groups = score.reshape(-1, pattern.of)
    return smallest_per_row(groups, len(groups) * (pattern.of - pattern.kept)).view_as(score)


def overfull_groups(weight: Float[Tensor, "rows cols"], pattern: Pattern) -> int:
    """Return the number of groups of a weight matrix that have more nonzeros than the pattern allows."""
    return int(((weight != 0).reshape(-1, pattern.of).sum(1) > pattern.kept).sum())


def require_pattern(weight: Float[Tensor, "rows cols"], pattern: Pattern) -> None:
    """Raise ConfigError if a pruned weight matrix does not follow the pattern."""
    if weight.shape[1] % pattern.of or overfull_groups(weight, pattern):
        rule = "must be one that the weights follow"
        raise ConfigError("pattern", rule, str(pattern), "Give the pattern that the model was pruned to.")


def cubic_rise(progress: float) -> float:
    """Return the fraction of the zeros that are set at a fraction of a gradual rise: fast at first, from 0 to 1.

    The cubic schedule of Zhu & Gupta 2017, arXiv 1710.01878, section 3.
    """
    return 1 - (1 - progress) ** 3


def zeros_first(score: Float[Tensor, "rows cols"], weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
    """Return the scores with -1 for weights that are already zero, so that these are chosen first.

    Scores must be >= 0.
    """
    return score.masked_fill(weight == 0, -1.0)
