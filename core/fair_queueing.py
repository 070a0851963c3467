"""Turns: in which order a queue serves the tenants that share it. A tenant with weight 2 is served twice as often.

The order is that of start-time fair queueing (Goyal, Vin and Cheng, 1996), with one unit of cost per job, import or
push. Each time a tenant is served, its next turn moves back by 1 / weight. A tenant gets no extra turns for the time in
which it had no jobs: its next turn does not start before the turn that was served last.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import TypeVar

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.infra.database import Lock, lock
from core.tables import Import, Push, Turn

Row = TypeVar("Row", Import, Push)


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


def take(session: Session, queue: Queue, tenant: str, start: float, weight: float = 1.0) -> None:
    """Record that the tenant was served. `start` is the value of `starts`."""
    row = {"queue": queue, "tenant": tenant, "served": start, "next": start + 1 / weight}
    change = insert(Turn).values(row)
    changed = {"served": change.excluded.served, "next": change.excluded.next}
    session.execute(change.on_conflict_do_update(index_elements=["queue", "tenant"], set_=changed))


def claim(
    session: Session,
    queue: Queue,
    guard: Lock,
    table: type[Row],
    *,
    due: ColumnElement[bool],
    in_work: ColumnElement[bool],
) -> Row | None:
    """Lock and return the next due row of a table, and record that its tenant was served. Return None if none is due.

    The tenant with the fewest rows in work is served. Among tenants with equally many, the earliest turn is first.
    Other claims with the same `guard` wait until this transaction ends.
    """
    if session.scalar(select(table.id).where(due).limit(1)) is None:
        return None
    lock(session, guard)
    waiting = session.scalars(select(table.tenant).where(due).distinct()).all()
    working = select(table.tenant, func.count()).where(in_work).group_by(table.tenant)
    counts = dict(session.execute(working).all())
    turns = starts(session, queue, waiting)
    for tenant, start in sorted(turns.items(), key=lambda turn: (counts.get(turn[0], 0), turn[1], turn[0])):
        query = select(table).where(due, table.tenant == tenant).order_by(table.due_at).limit(1)
        if row := session.scalar(query.with_for_update(skip_locked=True)):
            take(session, queue, tenant, start)
            return row
    return None
