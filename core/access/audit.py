"""Who changed what, and when: a row for each change that came over HTTP, written in the change's own transaction."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from core.access.keys import Scope
from core.tables import AuditEntry


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key came with a request. A caller sees the rows of its tenant and no others."""

    tenant: str
    key_id: str
    scope: Scope
    request_id: str


def record(session: Session, caller: Caller, action: str, target: str) -> None:
    """Write down that the caller did `action`, an operation's name, to the thing whose id is `target`."""
    who = {"tenant": caller.tenant, "key_id": caller.key_id, "request_id": caller.request_id}
    session.execute(insert(AuditEntry), {**who, "action": action, "target": target})


def page(session: Session, tenant: str, *, before: int | None, limit: int) -> tuple[Sequence[AuditEntry], bool]:
    """Up to `limit` entries, newest first, those older than the entry `before`; and whether there are more."""
    query = select(AuditEntry).where(AuditEntry.tenant == tenant).order_by(AuditEntry.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit
