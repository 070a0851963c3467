"""Swaps of zeros and nonzeros in a linear whose nonzeros are all trained.

A zero grows if its estimated gain is larger than the estimated loss of setting another weight to zero. With the mean
gradient g of many steps and the curvature h, growing gains up to g^2 / 2h, and removing a weight w costs h w^2 / 2
(LeCun et al. 1990, Optimal Brain Damage). `seft.repair.rise` describes the curvature.

[ours] Gradients of few tokens are mostly noise, and the largest of many noisy gains is large. So the variance of the
mean gradient is subtracted from g^2, and a new weight gets only the part -g / h of its best value that is not noise.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import Pattern, RepairConfig
from seft.models.targets import count_nonzeros
from seft.repair.positions import entries, put
from seft.repair.window import GradientSums

MAX_SWAPPED_FRACTION = 0.005
"""Largest fraction of the nonzeros that an event swaps. Swapping 2 % at once destroyed a model (docs/log.md)."""
CANDIDATES_PER_SWAP = 4
"""Length of the list of candidates, as a multiple of the largest number of swaps."""
CHECK_WINDOWS = 4
"""Number of training windows that are held out to check every event."""


def is_event(config: RepairConfig, first: int, step: int) -> bool:
    """Return whether zeros and nonzeros are swapped after a step: once every `swap_tokens` tokens after step `first`.

    The last `settle` fraction of the steps has no events.
    """
    if not config.swap_tokens or not first < step <= config.last_event:
        return False
    tokens = (step - first) * config.batch_tokens
    return tokens // config.swap_tokens > (tokens - config.batch_tokens) // config.swap_tokens


@dataclass(frozen=True, slots=True)
class Observed:
    """Number of steps, and of micro-batches in these steps, whose gradients were summed since the last event."""

    steps: int = 0
    micro_batches: int = 0

    def plus_step(self, micro_batches: int) -> "Observed":
        """Return the numbers after one more step."""
        return Observed(self.steps + 1, self.micro_batches + micro_batches)

    def mean_and_noise(self, listed: GradientSums) -> tuple[Float[Tensor, "positions"], Float[Tensor, "positions"]]:
        """Return the mean gradient of a step at each position, and the variance of this mean."""
        mean = listed.sums / self.micro_batches
        if self.micro_batches < 2:
            return mean, mean**2  # One gradient tells nothing about its noise.
        variance = (listed.squares / self.micro_batches - mean**2).clamp(min=0) / (self.micro_batches - 1)
        pieces = self.micro_batches / self.steps
        return mean * pieces, variance * pieces**2


@dataclass(frozen=True, slots=True)
class Swap:
    """The positions that grow, with their new values, and the positions that become zero, with their old values.

    The number of both is the same.
    """

    grown: Int[Tensor, "swaps"]
    values: Float[Tensor, "swaps"]
    removed: Int[Tensor, "swaps"]
    former: Float[Tensor, "swaps"]

    def apply(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Change the weight matrix in place."""
        put(weight, self.grown, self.values)
        put(weight, self.removed, torch.zeros_like(self.former))

    def undo(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Restore the weight matrix bit for bit."""
        put(weight, self.grown, torch.zeros_like(self.values))
        put(weight, self.removed, self.former)


def observe(
    listed: GradientSums, gradient: Float[Tensor, "rows cols"], weight: Float[Tensor, "rows cols"]
) -> GradientSums:
    """Return the list of candidates after one more micro-batch with this gradient of the weight matrix.

    The earlier gradients of a new candidate count as zero, which can only lower its estimated gain.
    """
    listed = listed.updated(entries(gradient, listed.indices).to(listed.sums.dtype))
    size = candidate_count(weight)
    score = gradient.abs().float().masked_fill_(weight != 0, 0).flatten()
    score[listed.indices.long()] = 0
    places = score.topk(min(size, len(score))).indices
    places = places[score[places] > 0].sort().values
    new = entries(gradient, places).to(listed.sums.dtype)
    joined = listed.joined(GradientSums(places.int(), new, new**2))
    return joined[joined.sums.abs().topk(min(size, len(joined))).indices.sort().values]


def candidate_count(weight: Float[Tensor, "rows cols"]) -> int:
    """Return the length of the list of candidates of a linear."""
    return CANDIDATES_PER_SWAP * max(1, int(MAX_SWAPPED_FRACTION * count_nonzeros(weight)))


@dataclass(frozen=True, slots=True)
class Growth:
    """Zeros that may grow, the best first, with their estimated gains and the values that they would get."""

    zeros: Int[Tensor, "zeros"]
    gains: Float[Tensor, "zeros"]
    values: Float[Tensor, "zeros"]


def estimate_growth(
    weight: Float[Tensor, "rows cols"],
    listed: GradientSums,
    observed: Observed,
    by_row: Float[Tensor, "rows"],
    by_col: Float[Tensor, "cols"],
) -> Growth:
    """Return the listed zeros with their estimated gains and values.

    The curvature of a position is the product of its entries in `by_row` and `by_col`. No value is larger than the root
    mean square of the nonzeros.
    """
    places = listed.indices.long()
    mean, noise = observed.mean_and_noise(listed)
    tiny = torch.finfo(mean.dtype).tiny
    signal = (mean**2 - noise).clamp(min=0)
    curvature = (by_row[places // weight.shape[1]] * by_col[places % weight.shape[1]]).clamp(min=tiny)
    gains = signal / (2 * curvature)
    limit = weight.to(mean.dtype).norm() / weight.count_nonzero().clamp(min=1).sqrt()
    values = (-mean * signal / (mean**2).clamp(min=tiny) / curvature).clamp(min=-limit, max=limit).to(weight.dtype)
    usable = ((values != 0) & (entries(weight, places) == 0)).nonzero().squeeze(1)
    best = usable[gains[usable].argsort(descending=True, stable=True)]
    return Growth(places[best], gains[best], values[best])


def choose(
    weight: Float[Tensor, "rows cols"], growth: Growth, losses: Float[Tensor, "rows cols"], pattern: Pattern, most: int
) -> Swap:
    """Return the swaps whose estimated gain is larger than their estimated loss, at most `most`.

    `losses` has the estimated loss of setting each nonzero to zero, and infinity for zeros. In an N:M pattern, a zero
    swaps with a nonzero of its group, and a group has at most one swap.
    """
    pair = _pair_in_groups if pattern.grouped else _pair_overall
    grown, removed = pair(growth, losses, pattern, most)
    return Swap(growth.zeros[grown], growth.values[grown], removed, entries(weight, removed))


def _pair_overall(
    growth: Growth, losses: Float[Tensor, "rows cols"], _: Pattern, most: int
) -> tuple[Int[Tensor, "swaps"], Int[Tensor, "swaps"]]:
    """Pair the zeros, best first, with the nonzeros, cheapest first, while the gain is larger than the loss.

    Returns the numbers of the zeros in `growth`, and the positions of the nonzeros.
    """
    count = min(most, len(growth.zeros), losses.numel())
    cheapest = losses.flatten().topk(count, largest=False)
    better = (growth.gains[:count] > cheapest.values).nonzero().squeeze(1)
    return better, cheapest.indices[better]


def _pair_in_groups(
    growth: Growth, losses: Float[Tensor, "rows cols"], pattern: Pattern, most: int
) -> tuple[Int[Tensor, "swaps"], Int[Tensor, "swaps"]]:
    """Pair the best zero of each group with the cheapest nonzero of the group. The best pairs come first.

    Returns the numbers of the zeros in `growth`, and the positions of the nonzeros.
    """
    groups, order = (growth.zeros // pattern.of).sort(stable=True)
    first = torch.ones_like(groups, dtype=torch.bool)
    first[1:] = groups.diff() != 0
    numbers, groups = order[first], groups[first]
    cheapest = losses.reshape(-1, pattern.of)[groups].min(1)
    margin = growth.gains[numbers] - cheapest.values
    best = margin.argsort(descending=True, stable=True)[: min(most, int((margin > 0).sum()))]
    return numbers[best], groups[best] * pattern.of + cheapest.indices[best]
