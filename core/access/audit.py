"""The audit log. A request for a change writes one row, in the same transaction as the change."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from core.access.keys import Scope
from core.errors import Code, ProblemError
from core.infra.database import lock, newest_first
from core.tables import AuditEntry


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: the tenant, id and scope of its API key. It sees only the rows of its own tenant."""

    tenant: str
    key_id: str
    scope: Scope
    request_id: str


def record(session: Session, caller: Caller, action: str, target: str) -> None:
    """Write an audit row: the caller ran the operation `action` on the object with the id `target`."""
    identity = {"tenant": caller.tenant, "key_id": caller.key_id, "request_id": caller.request_id}
    session.execute(insert(AuditEntry), {**identity, "action": action, "target": target})


def require_rate(session: Session, tenant: str, action: str, *, most: int, seconds: int) -> None:
    """Raise RATE_LIMITED if the tenant has run the operation `most` times within `seconds`.

    The rows of the audit log are counted, because they are never deleted. Until the transaction ends, other
    transactions that check this operation of the tenant wait.
    """
    lock(session, f"rate of {action}\n{tenant}")
    recent = AuditEntry.created_at > func.now() - timedelta(seconds=seconds)
    count = select(func.count()).where(AuditEntry.tenant == tenant, AuditEntry.action == action, recent)
    if (session.scalar(count) or 0) >= most:
        detail = f"Your tenant can run {action} at most {most} times in {seconds} s. Retry in {seconds} s."
        raise ProblemError(Code.RATE_LIMITED, detail, retry_after=seconds)


def page(session: Session, tenant: str, *, after: int | None, limit: int) -> tuple[Sequence[AuditEntry], bool]:
    """Return up to `limit` entries that are older than the entry with id `after`, newest first.

    The second value is true if there are older entries.
    """
    return newest_first(session, AuditEntry, AuditEntry.tenant == tenant, after=after, limit=limit)
