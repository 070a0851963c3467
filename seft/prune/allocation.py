"""Decides how many zeros each target (a linear layer that is pruned) gets.

Sparsity is the same everywhere, or higher in blocks that tolerate it better. The total number of zeros is the same for
every allocation. As in their papers, `owl` and `alphapruning` set the sparsity per block; all targets of a block have
the same. `curvature` (`seft.prune.curvature`) sets it per target. The counts are whole numbers: the proportions are
scaled to the total of the uniform allocation, and the last few zeros go to the targets whose counts were rounded down
most.
"""

from collections.abc import Sequence

from seft.config import MOST_SPARSE, Compare, PruneConfig, SparsityOf
from seft.errors import ConfigError

Sizes = Sequence[Sequence[int]]
"""Number of weights of each target: one sequence per block."""

Shape = tuple[int, ...]
"""Rows and columns of a target."""


def uniform_zeros(shape: Shape, sparsity: float, config: PruneConfig) -> int:
    """Return the number of zeros that one target gets at this sparsity, rounded down.

    If `compare` is `row`, the number is rounded down in every row, as in the published code of Wanda. Otherwise,
    and with `sparsity_of: model`, it is rounded down once per target, which comes closer to the requested sparsity.
    """
    if config.compare is Compare.ROW and config.sparsity_of is SparsityOf.TARGETS:
        return zeros_of_equal_rows(shape, sparsity)
    rows, cols = shape
    return int(rows * cols * sparsity)


def zeros_of_equal_rows(shape: Shape, sparsity: float) -> int:
    """Return the number of zeros that one target gets if every row gets the same number, rounded down."""
    rows, cols = shape
    return rows * int(cols * sparsity)


def allocate_by_block(sizes: Sizes, total: int, weights: Sequence[float]) -> list[list[int]]:
    """Return the number of zeros of each target of each block: `total` in all, in proportion to the blocks' `weights`.

    No target gets more zeros than `MOST_SPARSE`, a fraction of its weights. Raises ConfigError if `total` is larger
    than all these limits together.
    """
    flat = [size for block in sizes for size in block]
    proportions = [size * weight for block, weight in zip(sizes, weights, strict=True) for size in block]
    counts = iter(apportion(proportions, [int(size * MOST_SPARSE) for size in flat], total))
    return [[next(counts) for _ in block] for block in sizes]


def apportion(proportions: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """Return whole counts that sum to `total`, in proportion to `proportions`. No count exceeds its limit.

    Counts are rounded down first. Then the counts with the largest remainders get one more each. Raises ConfigError if
    `total` is larger than the sum of the limits.
    """
    if total > sum(limits):
        rule = f"must give at most {sum(limits)} zeros in the linear layers"
        raise ConfigError("sparsity", rule, total, "Lower the sparsity.", lead="it gives")
    scale = _scale(proportions, limits, total)
    exact = [min(max(part, 0.0) * scale, limit) for part, limit in zip(proportions, limits, strict=True)]
    counts = [int(value) for value in exact]
    missing = total - sum(counts)
    order = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    while missing:
        for place in [place for place in order if counts[place] < limits[place]][:missing]:
            counts[place] += 1
            missing -= 1
    return counts


def _scale(proportions: Sequence[float], limits: Sequence[int], total: int) -> float:
    """Return the factor by which the proportions, cut at their limits, sum to just under `total`. Uses bisection."""

    def scaled_sum(scale: float) -> float:
        return sum(min(max(part, 0.0) * scale, limit) for part, limit in zip(proportions, limits, strict=True))

    low, high = 0.0, 1.0
    while scaled_sum(high) <= total and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled_sum(middle) <= total else (low, middle)
    return low
