"""How many zeros each target gets: the same share for all, or more where a block bears more, never more in all.

Shares are made for blocks, as the papers of OWL and AlphaPruning do; all targets of a block have the same. Counts are
whole, so shares are scaled until the counts fit the uniform total and the last few zeros go where rounding took most.
"""

import math
from collections.abc import Sequence
from typing import Any

from seft.config import MOST_SPARSE, Compare, PruneConfig, SparsityOf
from seft.errors import ConfigError
from seft.prune.methods import comparison

Sizes = Sequence[Sequence[int]]
"""Weights of each target of each block."""

Shape = tuple[int, ...]
"""Rows and columns of a target."""


def target_sparsity(model: Any, sizes: Sizes, config: PruneConfig) -> float:
    """The share of the targets' weights that the asked share stands for; ConfigError where they cannot give it."""
    if config.sparsity_of is SparsityOf.TARGETS:
        return config.sparsity
    parameters: int = sum(parameter.numel() for parameter in model.parameters())
    targets = sum(size for block in sizes for size in block)
    share = config.sparsity * parameters / targets
    if share > MOST_SPARSE:
        most = math.floor(MOST_SPARSE * targets / parameters * 1e4) / 1e4
        rule = f"must be at most {most} of this model, whose linear layers hold {targets / parameters:.1%} of it"
        raise ConfigError("sparsity", rule, config.sparsity, "Ask for less, or for a share of the targets.")
    return share


def uniform_zeros(shape: Shape, share: float, config: PruneConfig) -> int:
    """As many zeros as the share gives in a target, rounded down: in each row, as published, where rows are compared.

    A share of the whole model is met more closely: it is rounded once for all rows.
    """
    rows, cols = shape
    if comparison(config) is Compare.ROW and config.sparsity_of is SparsityOf.TARGETS:
        return rows * int(cols * share)
    return int(rows * cols * share)


def allocate_by_block(sizes: Sizes, total: int, weights: Sequence[float]) -> list[list[int]]:
    """So many zeros in all, in proportion to the blocks' weights, and none above the most."""
    flat = [size for block in sizes for size in block]
    wishes = [size * weight for block, weight in zip(sizes, weights, strict=True) for size in block]
    counts = iter(apportion(wishes, [int(size * MOST_SPARSE) for size in flat], total))
    return [[next(counts) for _ in block] for block in sizes]


def apportion(wishes: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Whole counts that sum to `total`, in proportion to the wishes but for those that `most` cuts.

    Rounded down first; then the largest remainders get one more each. ConfigError where `most` is too little.
    """
    if total > sum(most):
        raise ConfigError("sparsity", f"must leave room for {total} zeros in targets that take {sum(most)}", total, "")
    scale = _scale(wishes, most, total)
    exact = [min(max(wish, 0.0) * scale, limit) for wish, limit in zip(wishes, most, strict=True)]
    counts = [int(value) for value in exact]
    missing = total - sum(counts)
    order = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    while missing:
        for place in [place for place in order if counts[place] < most[place]][:missing]:
            counts[place] += 1
            missing -= 1
    return counts


def _scale(wishes: Sequence[float], most: Sequence[int], total: int) -> float:
    """By bisection: what the wishes are multiplied by, so that with their limits they sum to just under the total."""

    def reached(scale: float) -> float:
        return sum(min(max(wish, 0.0) * scale, limit) for wish, limit in zip(wishes, most, strict=True))

    low, high = 0.0, 1.0
    while reached(high) <= total and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) <= total else (low, middle)
    return low
