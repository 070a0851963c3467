"""The decisions of one topology event in one linear: which active positions to drop, which positions to grow and prune.

Active positions are the trained entries of the weight matrix. A topology event drops some, grows others, and sets
further entries to zero to keep the number of nonzeros (adapt). These functions change no weight.

A position is *used* if its weight is nonzero or if it is active. An active position is used even while its value is
zero, so the limits hold at every step and not only at events. At most `budget` positions of the linear are used, and at
most N in every group of an N:M pattern. Without a pattern each position is a group of its own, which limits nothing.

[ours] In an N:M pattern, a zero that grows replaces a used position of its group: the least sensitive one, active or
not, that does not grow in the same event. If the group has a free place, nothing is replaced. At most the N best
positions of a group grow, so there is always a position to replace.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.errors import TrainError
from seft.models.targets import count_nonzeros
from seft.repair.active import Active
from seft.repair.positions import entries
from seft.repair.window import Candidates


class Choice(NamedTuple):
    """Result of an event: `grown` positions become active, `removed` become zero, `spared` stay active.

    The `spared` positions were dropped before. For each removed position that was active, one more position grows.
    """

    grown: Candidates
    removed: Int[Tensor, "removed"]
    spared: Int[Tensor, "spared"]


def drop(active: Active, count: int) -> tuple[Active, Active]:
    """Separate the `count` active positions whose values changed least. Returns the kept and the dropped positions."""
    dropped = torch.zeros(len(active), dtype=torch.bool, device=active.indices.device)
    dropped[active.deltas.abs().argsort(stable=True)[:count]] = True
    return active[~dropped], active[dropped]


def choose(
    weight: Float[Tensor, "rows cols"],
    kept: Active,
    dropped: Active,
    growth: Candidates,
    removal: Int[Tensor, "removal"],
    *,
    budget: int,
    pattern: Pattern = UNSTRUCTURED,
) -> Choice:
    """Choose the positions to grow and the positions to set to zero, within the budget and the pattern.

    Candidates in `growth` are taken by falling score. Positions in `removal` are taken in their order; each of them
    must be a used position. As many positions grow as were dropped. `weight` must have its base values at the dropped
    positions. Raises TrainError if the budget cannot be kept.
    """
    # Example: three nonzeros were dropped, and the budget is full. The three best candidates are zeros, so three
    # positions must be removed. One of them is a kept active position, so a fourth candidate grows in its place. If
    # this is a zero too, a fourth position must be removed.
    #
    # 1. spare: the places of the budget that are free before anything grows. A kept active position uses a place, even
    #    if its value is zero.
    # 2. queue: the positions that may be removed. First `removal`, then the other dropped nonzeros, smallest |base|
    #    first. The queue is always long enough: each zero that grows without a free place needs one position.
    #    The number of these zeros is at most the number of dropped nonzeros.
    # 3. eligible: candidates by falling score. In a pattern, these are at most the N best of each group.
    # 4. Grow the first `len(dropped)` of them, and remove what the limits ask for. For each kept active position that
    #    is removed, grow the next candidate. This may remove more. Repeat until a round removes no more active
    #    positions than the one before, or until the candidates run out. The number never falls, so this ends.
    # 5. If all removed active positions are replaced, return this result.
    # 6. Otherwise, all kept active positions stay. Append the dropped positions to the candidates, those that moved
    #    most first. Take the first `len(dropped)` of them whose group has a free place beside the kept positions.
    # 7. Remove what the limits ask for, but no position that is taken or kept. The dropped positions that are taken
    #    are spared.
    spare = budget - count_nonzeros(weight) - int((entries(weight, kept.indices) == 0).sum())
    rest = dropped.indices[dropped.bases.abs().argsort(stable=True)]
    rest = rest[(entries(weight, rest) != 0) & ~torch.isin(rest, removal)]
    adapt = _Adapt(weight, torch.cat([removal, rest]), spare, pattern)
    best = growth.indices[growth.scores.argsort(descending=True, stable=True)]
    eligible = best[_rank_among_equals(best // pattern.of) < pattern.kept] if pattern.grouped else best
    count, replaced = len(dropped), -1
    removed, removed_active = best[:0], 0
    while removed_active > replaced and count + removed_active <= len(eligible):
        replaced = removed_active
        removed = adapt(eligible[: count + replaced], eligible[: count + replaced])
        removed_active = int(torch.isin(removed, kept.indices).sum())
    if removed_active == replaced:
        return Choice(_select(growth, eligible[: count + replaced]), removed, best[:0])
    eligible = torch.cat([best, dropped.indices[dropped.deltas.abs().argsort(descending=True, stable=True)]])
    free = pattern.kept - _count_equals(eligible // pattern.of, kept.indices // pattern.of)
    chosen = eligible[_rank_among_equals(eligible // pattern.of) < free][:count]
    removed = adapt(chosen, torch.cat([chosen, kept.indices]))
    return Choice(_select(growth, chosen), removed, chosen[torch.isin(chosen, dropped.indices)].sort().values)


def limit_zeros(growth: Candidates, weight: Float[Tensor, "rows cols"], most: int) -> Candidates:
    """Return all candidates that are nonzeros, and the `most` zeros with the best scores.

    [ours] For each zero that grows, a nonzero becomes zero. If too many do so at once, the model breaks.
    """
    zero = entries(weight, growth.indices) == 0
    return growth[~zero | torch.isin(growth.indices, growth[zero].best(most).indices)]


@dataclass(frozen=True, slots=True)
class _Adapt:
    """Chooses which positions become zero after others have grown.

    `queue` has the positions that may become zero, the least sensitive first. `spare` is the number of unused positions
    in the budget before anything grows.
    """

    weight: Float[Tensor, "rows cols"]
    queue: Int[Tensor, "queue"]
    spare: int
    pattern: Pattern

    def __call__(self, grown: Int[Tensor, "grown"], staying: Int[Tensor, "staying"]) -> Int[Tensor, "removed"]:
        """Return the positions to set to zero when `grown` become active. Positions in `staying` are not chosen.

        They are chosen first in groups with more than N used positions, then to keep the budget. Raises TrainError if
        the budget cannot be kept.
        """
        queue = self.queue[~torch.isin(self.queue, staying)]
        overfull = self._overfull(queue, staying)
        others = queue[~overfull & (entries(self.weight, queue) != 0)]
        excess = int((entries(self.weight, grown) == 0).sum()) - self.spare - int(overfull.sum())
        if excess > len(others):
            raise TrainError(
                f"a linear layer must keep its budget of nonzeros; {excess} more weights must become"
                f" zero, but only {len(others)} can. Report this as a bug."
            )
        return torch.cat([queue[overfull], others[: max(0, excess)]])

    def _overfull(self, queue: Int[Tensor, "left"], staying: Int[Tensor, "staying"]) -> Bool[Tensor, "left"]:
        """Return which positions of the queue must become zero so that no group has more than N used positions."""
        if not self.pattern.grouped:
            return torch.zeros_like(queue, dtype=torch.bool)
        groups = queue // self.pattern.of
        in_group = _count_equals(groups, groups) + _count_equals(groups, staying // self.pattern.of)
        return _rank_among_equals(groups) < in_group - self.pattern.kept


def _select(growth: Candidates, chosen: Int[Tensor, "chosen"]) -> Candidates:
    return growth[torch.isin(growth.indices, chosen)]


def _rank_among_equals(groups: Int[Tensor, "positions"]) -> Int[Tensor, "positions"]:
    """Return, for each entry, the number of equal entries before it."""
    ordered, order = groups.sort(stable=True)
    places = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(places).scatter_(0, order, places)


def _count_equals(groups: Int[Tensor, "positions"], others: Int[Tensor, "others"]) -> Int[Tensor, "positions"]:
    """Return, for each entry of `groups`, the number of equal entries in `others`."""
    ordered = others.sort().values
    return torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)
