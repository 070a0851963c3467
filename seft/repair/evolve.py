"""The decisions of one event of the topology in one linear: drop, grow, adapt. Pure; they write into no weight.

The budget is `nonzeros outside the active set + |active set| <= budget`: an active position counts even while its value
is zero, so that the law holds at every step and not only at events.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.errors import TrainError
from seft.repair.active import Active
from seft.repair.positions import entries
from seft.repair.window import Candidates


class Choice(NamedTuple):
    """`grown` become active, `removed` become zero. A removed one that was active has a grown one in its place."""

    grown: Candidates
    removed: Int[Tensor, "removed"]


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
    removal: Candidates,
    *,
    budget: int,
) -> Choice:
    """Grow as many positions as were dropped, by largest gradient; remove the least sensitive until the budget holds.

    `weight` has the dropped positions at their bases. A removed position that was active is replaced by the next best
    candidate for growth, and stays when there is none. The queue of removals cannot run dry: the dropped nonzeros
    stand last in it, and an event grows at most so many zeros more than it has dropped.
    """
    order = growth.sums.abs().argsort(descending=True, stable=True)
    zeros = entries(weight, growth.indices[order]) == 0
    queue = _removal_queue(weight, dropped, growth, removal)
    grown, removed = len(dropped), [queue[:0]]
    nonzeros_kept = int(entries(weight, kept.indices).count_nonzero())
    nonzeros_outside = int(weight.count_nonzero()) - nonzeros_kept - int((~zeros[:grown]).sum())
    excess = nonzeros_outside + len(kept) + grown - budget
    while excess > 0:
        if not len(queue):
            raise TrainError(f"a linear must have at most {budget} nonzeros; {excess} more are left and none can go.")
        batch, queue = queue[:excess], queue[excess:]
        leaving = torch.isin(batch, kept.indices)
        batch = batch[~leaving | (leaving.cumsum(0) <= len(growth) - grown)]
        replaced = int(torch.isin(batch, kept.indices).sum())
        excess += int(zeros[grown : grown + replaced].sum()) - len(batch)
        grown += replaced
        removed.append(batch)
    return Choice(growth[order[:grown].sort().values], torch.cat(removed))


def _removal_queue(
    weight: Float[Tensor, "rows cols"], dropped: Active, growth: Candidates, removal: Candidates
) -> Int[Tensor, "queue"]:
    """Nonzeros that may become zero, least sensitive first; the dropped ones that no window listed come last."""
    listed = removal.indices[removal.sensitivity(weight).argsort(stable=True)]
    rest = dropped.indices[dropped.bases.abs().argsort(stable=True)]
    queue = torch.cat([listed, rest[~torch.isin(rest, listed)]])
    return queue[(entries(weight, queue) != 0) & ~torch.isin(queue, growth.indices)]
