"""Turns: in which order a queue serves the tenants that share it. A tenant with weight 2 is served twice as often.

The order is that of start-time fair queueing (Goyal, Vin and Cheng, 1996), with one unit of cost per job, import or
push. Each time a tenant is served, its next turn moves back by 1 / weight. A tenant gets no extra turns for the time in
which it had no jobs: its next turn does not start before the turn that was served last.
"""

from collections.abc import Collection, Mapping
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.tables import Turn


class Queue(StrEnum):
    """Queues that tenants share."""

    JOBS = "jobs"
    IMPORTS = "imports"
    PUSHES = "pushes"


def starts(session: Session, queue: Queue, tenants: Collection[str]) -> dict[str, float]:
    """Return when the next turn of each tenant starts, in virtual time. The tenant with the lowest value is next."""
    rows = session.execute(select(Turn.tenant, Turn.served, Turn.next).where(Turn.queue == queue)).all()
    now = max((served for _, served, _ in rows), default=0.0)
    following = {tenant: next_start for tenant, _, next_start in rows}
    return {tenant: max(following.get(tenant, now), now) for tenant in tenants}


def order(
    session: Session, queue: Queue, waiting: Collection[str], in_work: Mapping[str, int]
) -> list[tuple[str, float]]:
    """Return the tenants in the order in which they are served, each with the start of its turn.

    The tenant with the fewest items in work comes first. Among tenants with equally many, the earliest turn is first.
    """
    turns = starts(session, queue, waiting)
    return sorted(turns.items(), key=lambda turn: (in_work.get(turn[0], 0), turn[1], turn[0]))


def take(session: Session, queue: Queue, tenant: str, start: float, weight: float = 1.0) -> None:
    """Record that the tenant was served. `start` is the value of `starts`."""
    row = {"queue": queue, "tenant": tenant, "served": start, "next": start + 1 / weight}
    change = insert(Turn).values(row)
    changed = {"served": change.excluded.served, "next": change.excluded.next}
    session.execute(change.on_conflict_do_update(index_elements=["queue", "tenant"], set_=changed))
