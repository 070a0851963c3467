"""The decisions of one event of the topology in one linear: drop, grow, adapt. Pure; they write into no weight.

A position is *used* while it is nonzero or active: an active one counts even while its value is zero, so that the law
holds at every step and not only at events. At most `budget` positions of the linear are used, and at most N in every
group of an N:M pattern. Without a pattern each position is a group of its own, which forbids nothing.

[ours] In a pattern a grown zero takes the place of the least sensitive used position of its group, active or not, that
does not grow in the same event; where its group has room it takes no place. A group grows at most N positions, the
best, so that there always is a place to take.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.errors import TrainError
from seft.repair.active import Active
from seft.repair.positions import entries
from seft.repair.window import Candidates


class Choice(NamedTuple):
    """`grown` become active, `removed` become zero, `spared` were dropped and stay active all the same.

    A removed one that was active has a grown one in its place.
    """

    grown: Candidates
    removed: Int[Tensor, "removed"]
    spared: Int[Tensor, "spared"]


def drop(active: Active, count: int) -> tuple[Active, Active]:
    """The active set without the `count` positions that moved least, and those positions."""
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
    """Grow as many positions as were dropped, by best score; remove the first of `removal` that do not grow, until
    the law holds.

    `weight` has the dropped positions at their bases, and all in `removal` are used. A removed position that was active
    is replaced by the next best candidate for growth. Where there are too few of these, no active position is removed;
    and where groups then have no room for as many as were dropped, those dropped that moved most are spared.
    """
    spare = budget - int(weight.count_nonzero()) - int((entries(weight, kept.indices) == 0).sum())
    # No event runs out of what may go: it grows at most as many zeros more as it has dropped nonzeros.
    rest = dropped.indices[dropped.bases.abs().argsort(stable=True)]
    rest = rest[(entries(weight, rest) != 0) & ~torch.isin(rest, removal)]
    adapt = _Adapt(weight, torch.cat([removal, rest]), spare, pattern)
    best = growth.indices[growth.scores.argsort(descending=True, stable=True)]
    able = best[_rank(best // pattern.of) < pattern.kept]
    count, replaced = len(dropped), -1
    removed, leaving = best[:0], 0
    # Each round only adds to those that leave, so this ends; equal numbers mean that all of them are replaced.
    while leaving > replaced and count + leaving <= len(able):
        replaced = leaving
        removed = adapt(able[: count + replaced], able[: count + replaced])
        leaving = int(torch.isin(removed, kept.indices).sum())
    if leaving == replaced:
        return Choice(_among(growth, able[: count + replaced]), removed, best[:0])
    able = torch.cat([best, dropped.indices[dropped.deltas.abs().argsort(descending=True, stable=True)]])
    room = pattern.kept - _tally(able // pattern.of, kept.indices // pattern.of)
    chosen = able[_rank(able // pattern.of) < room][:count]
    removed = adapt(chosen, torch.cat([chosen, kept.indices]))
    return Choice(_among(growth, chosen), removed, chosen[torch.isin(chosen, dropped.indices)].sort().values)


@dataclass(frozen=True, slots=True)
class _Adapt:
    """Which positions become zero once others have grown.

    `queue` has those that may, the least sensitive first. `spare` is what the budget leaves before anything grows.
    """

    weight: Float[Tensor, "rows cols"]
    queue: Int[Tensor, "queue"]
    spare: int
    pattern: Pattern

    def __call__(self, grown: Int[Tensor, "grown"], staying: Int[Tensor, "staying"]) -> Int[Tensor, "removed"]:
        """What goes when `grown` are active: first where a group is too full, then as many as the budget asks for."""
        queue = self.queue[~torch.isin(self.queue, staying)]
        groups = queue // self.pattern.of
        too_many = _tally(groups, groups) + _tally(groups, staying // self.pattern.of) - self.pattern.kept
        crowded = _rank(groups) < too_many
        others = queue[~crowded & (entries(self.weight, queue) != 0)]
        excess = int((entries(self.weight, grown) == 0).sum()) - self.spare - int(crowded.sum())
        if excess > len(others):
            raise TrainError(f"a linear must keep its budget of nonzeros; {excess} must go and {len(others)} can.")
        return torch.cat([queue[crowded], others[: max(0, excess)]])


def _among(growth: Candidates, chosen: Int[Tensor, "chosen"]) -> Candidates:
    return growth[torch.isin(growth.indices, chosen)]


def _rank(groups: Int[Tensor, "positions"]) -> Int[Tensor, "positions"]:
    """For each entry how many equal ones stand before it."""
    ordered, order = groups.sort(stable=True)
    places = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(places).scatter_(0, order, places)


def _tally(groups: Int[Tensor, "positions"], among: Int[Tensor, "others"]) -> Int[Tensor, "positions"]:
    """For each entry how many equal ones there are among others."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)
