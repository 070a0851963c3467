"""The audit log: one row per change made over HTTP, written in the same transaction as the change."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from core.access.keys import Scope
from core.tables import AuditEntry


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of the API key sent with a request. A caller sees only the rows of its own tenant."""

    tenant: str
    key_id: str
    scope: Scope
    request_id: str


def record(session: Session, caller: Caller, action: str, target: str) -> None:
    """Record that the caller ran `action`, the name of an operation, on the object with the id `target`."""
    identity = {"tenant": caller.tenant, "key_id": caller.key_id, "request_id": caller.request_id}
    session.execute(insert(AuditEntry), {**identity, "action": action, "target": target})


def page(session: Session, tenant: str, *, before: int | None, limit: int) -> tuple[Sequence[AuditEntry], bool]:
    """Return up to `limit` entries older than the entry `before`, newest first, and whether there are more."""
    query = select(AuditEntry).where(AuditEntry.tenant == tenant).order_by(AuditEntry.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit
