"""The audit log. Every change made over HTTP writes one row, in the same transaction as the change."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from core.access.keys import Scope
from core.tables import AuditEntry


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant, name and scope of the API key that sent a request. A caller sees only the rows of its own tenant."""

    tenant: str
    key_id: str
    scope: Scope
    request_id: str


def record(session: Session, caller: Caller, action: str, target: str) -> None:
    """Write an audit row: the caller ran the operation `action` on the object with the id `target`."""
    identity = {"tenant": caller.tenant, "key_id": caller.key_id, "request_id": caller.request_id}
    session.execute(insert(AuditEntry), {**identity, "action": action, "target": target})


def page(session: Session, tenant: str, *, before: int | None, limit: int) -> tuple[Sequence[AuditEntry], bool]:
    """Return up to `limit` entries that are older than the entry with id `before`, newest first.

    The second value is true if there are older entries.
    """
    query = select(AuditEntry).where(AuditEntry.tenant == tenant).order_by(AuditEntry.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit
