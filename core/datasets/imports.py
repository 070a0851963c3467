"""Datasets on their way here: uploads in parts, and sources that the service fetches.

The row says what is owed. Who checks one holds it by a lease that is renewed, and settles it; an importer that dies in
between has only delayed it.
"""

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from core import ids
from core.errors import Code, Flaw, ProblemError
from core.tables import Dataset, Import, Json

MOST = 100
"""Imports of one tenant that are not settled."""
LEASE = timedelta(seconds=60)
TRIES = 5
UNFINISHED = timedelta(days=2)
"""An upload whose parts do not come is given up after so long, as `core.infra.storage.TORN` has the storage do."""
KEPT = timedelta(days=30)
PART_BYTES, PARTS = 16 << 20, 10_000
"""The least of a part, and the most that S3 takes of them."""


class State(StrEnum):
    """Where an import stands."""

    RECEIVING = "receiving"
    CHECKING = "checking"
    DONE = "done"
    FAILED = "failed"


def key(import_id: str) -> str:
    """Where the parts become an object."""
    return f"imports/{import_id}"


def part_bytes(size: int) -> int:
    """Of each part but the last one."""
    return max(PART_BYTES, -(-size // PARTS))


def part_count(size: int) -> int:
    """How many parts make so many bytes."""
    return -(-size // part_bytes(size))


def part_length(size: int, number: int) -> int:
    """Bytes of the part of this number, from 1."""
    return min(part_bytes(size), size - (number - 1) * part_bytes(size))


def require_import_quota(session: Session, tenant: str) -> None:
    """LIMIT_REACHED when the tenant has `MOST` unsettled imports. Until the transaction ends it begins no other one."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"imports\n{tenant}", 0))))
    under_way = (Import.tenant == tenant, Import.state.in_((State.RECEIVING, State.CHECKING)))
    if (session.scalar(select(func.count()).where(*under_way)) or 0) >= MOST:
        detail = f"{MOST} imports are under way. Finish one, or DELETE /imports/{{import_id}}."
        raise ProblemError(Code.LIMIT_REACHED, detail)


def unfinished(session: Session, tenant: str, name: str, size: int, resume_key: str) -> Import | None:
    """The tenant's upload of the same bytes whose parts are still coming."""
    same = (Import.name == name, Import.bytes == size, Import.resume_key == resume_key)
    query = select(Import).where(Import.tenant == tenant, Import.state == State.RECEIVING, *same)
    return session.scalars(query.order_by(Import.id.desc()).limit(1)).first()


def get(session: Session, tenant: str, import_id: str, *, change: bool = False) -> Import:
    """The tenant's import, locked where it shall change; or NOT_FOUND."""
    query = select(Import).where(Import.id == import_id, Import.tenant == tenant)
    row = session.scalar(query.with_for_update() if change else query) if ids.is_id("imp", import_id) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no import {import_id!r}. GET /imports lists yours.")
    return row


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> tuple[Sequence[Import], bool]:
    """Up to `limit` imports, newest first, those older than `after`; and whether there are more."""
    query = select(Import).where(Import.tenant == tenant).order_by(Import.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Import.id < after)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit


def claim(session: Session) -> Import | None:
    """An import that is due, under a new try and a lease; None when there is none. After `TRIES` it has failed."""
    due = select(Import).where(Import.due_at < func.now()).order_by(Import.due_at)
    row = session.scalars(due.limit(1).with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    if row.tries >= TRIES:
        fail(row, ProblemError(Code.UNAVAILABLE, f"After {TRIES} tries no more are made. Tell the operator."))
        return None
    row.tries, row.due_at = row.tries + 1, func.now() + LEASE
    session.flush()
    session.refresh(row)
    return row


def renew(session: Session, import_id: str) -> None:
    """Hold a claimed import for another lease."""
    held = (Import.id == import_id, Import.due_at.is_not(None))
    session.execute(update(Import).where(*held).values(due_at=func.now() + LEASE))


def arrived(row: Import) -> None:
    """Have the file checked, or the source fetched."""
    row.state, row.due_at = State.CHECKING, func.now()


def held(session: Session, claimed: Import) -> Import | None:
    """The row of a claimed import, locked; None where it is no longer the claimer's."""
    mine = (Import.id == claimed.id, Import.tries == claimed.tries, Import.due_at.is_not(None))
    return session.scalars(select(Import).where(*mine).with_for_update()).first()


def done(row: Import, dataset: Dataset) -> None:
    """It became this dataset."""
    row.state, row.due_at, row.dataset_id = State.DONE, None, dataset.id


def fail(row: Import, problem: ProblemError) -> None:
    """It became none."""
    row.state, row.due_at, row.error = State.FAILED, None, _failure(problem)


def expire(session: Session) -> None:
    """Give up uploads whose parts stayed away, and forget what was settled long ago."""
    flaw = Flaw("parts", f"come within {UNFINISHED.days} days", "not all of them", "Send the file again.")
    error = _failure(ProblemError(Code.TOO_SLOW, "Not all parts came in time.", (flaw,)))
    late = (Import.state == State.RECEIVING, Import.created_at < func.now() - UNFINISHED)
    session.execute(update(Import).where(*late).values(state=State.FAILED, error=error))
    settled = Import.state.in_((State.DONE, State.FAILED))
    session.execute(delete(Import).where(settled, Import.created_at < func.now() - KEPT))


def _failure(problem: ProblemError) -> Json:
    """A problem as an import's row keeps it."""
    return {"code": problem.code, "message": problem.message, "errors": [_told(flaw) for flaw in problem.flaws]}


def _told(flaw: Flaw) -> Json:
    return {name: getattr(flaw, name).replace("\0", "\ufffd") for name in ("param", "rule", "value", "way_out")}
