"""Imports: datasets that are uploaded in parts, or that the service fetches from a remote source.

The state of an import is in its row. An importer claims the row with a lease and renews the lease while it works.
Then it marks the import as done or failed. If the importer dies, the lease expires and another importer tries again.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.orm import Session

from core import fair_queueing, ids
from core.errors import Code, Flaw, ProblemError
from core.fair_queueing import Queue
from core.infra.database import Lock, lock, newest_first
from core.infra.storage import part_bytes
from core.states import ImportState
from core.tables import Dataset, Import, Json

MAX_ACTIVE = 100
"""Maximum number of unfinished imports per tenant."""
LEASE = timedelta(seconds=60)
TRIES = 5
"""Number of tries after which an import fails. Tries during which the object storage was not available do not count."""
LONGEST_PAUSE = timedelta(hours=1)
"""Longest time until the next try after the object storage was not available."""
UPLOAD_EXPIRY = timedelta(days=2)
"""Time after which an upload fails if parts are missing.

The bucket rule `core.infra.storage.ABORT_INCOMPLETE_UPLOADS` uses the same time.
"""
RETENTION = timedelta(days=30)
"""Time for which finished imports are kept."""
UNFINISHED = (ImportState.RECEIVING, ImportState.CHECKING)


def key(import_id: str) -> str:
    """Return the storage key of the object into which the parts of the import are joined."""
    return f"imports/{import_id}"


def part_count(size: int) -> int:
    """Return the number of parts of a file of `size` bytes."""
    return -(-size // part_bytes(size))


def part_length(size: int, number: int) -> int:
    """Return the bytes of the part with this number, for a file of `size` bytes. Part numbers start at 1."""
    return min(part_bytes(size), size - (number - 1) * part_bytes(size))


def require_import_quota(session: Session, tenant: str) -> None:
    """Raise LIMIT_REACHED if the tenant has `MAX_ACTIVE` unfinished imports.

    Until the transaction ends, no other transaction can start an import for the tenant.
    """
    lock(session, f"imports\n{tenant}")
    active = (Import.tenant == tenant, Import.state.in_(UNFINISHED))
    if (session.scalar(select(func.count()).where(*active)) or 0) >= MAX_ACTIVE:
        detail = (
            f"A tenant may have at most {MAX_ACTIVE} unfinished imports, and you have that many."
            " Wait until one finishes, or delete one with DELETE /imports/{import_id}."
        )
        raise ProblemError(Code.LIMIT_REACHED, detail)


def find_unfinished(session: Session, tenant: str, name: str, size: int, resume_key: str) -> Import | None:
    """Return the tenant's newest upload with this name, size and `resume_key` that is not done or failed, or None.

    Its row is locked, so that its state stays the same until the transaction ends.
    """
    same = (Import.name == name, Import.bytes == size, Import.resume_key == resume_key)
    query = select(Import).where(Import.tenant == tenant, Import.state.in_(UNFINISHED), *same)
    return session.scalars(query.order_by(Import.id.desc()).limit(1).with_for_update()).first()


def get(session: Session, tenant: str, import_id: str, *, change: bool = False) -> Import:
    """Return the tenant's import with this id, and lock its row if `change` is true.

    Raises NOT_FOUND if the tenant has no such import.
    """
    query = select(Import).where(Import.id == import_id, Import.tenant == tenant)
    row = session.scalar(query.with_for_update() if change else query) if ids.is_id("imp", import_id) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no import {import_id!r}. List yours with GET /imports.")
    return row


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> tuple[Sequence[Import], bool]:
    """Return up to `limit` imports older than `after`, newest first.

    The second value is true if there are older imports.
    """
    return newest_first(session, Import, Import.tenant == tenant, after=after, limit=limit)


def claim(session: Session, *, busy: Collection[str] = ()) -> Import | None:
    """Claim the next due import: count a try and start a lease. Returns None if no import is due.

    The tenant with the fewest imports in work is served. Among tenants with equally many, the earliest turn is first.
    Imports of the tenants in `busy` are not claimed. An import without tries left is marked as failed and returned.
    Other claims wait until this transaction ends.
    """
    due = and_(Import.due_at < func.now(), Import.tenant.not_in(busy))
    leased = and_(Import.tries > 0, Import.due_at.between(func.now(), func.now() + LEASE))
    row = fair_queueing.claim(session, Queue.IMPORTS, Lock.IMPORT_CLAIM, Import, due=due, in_work=leased)
    if row is None:
        return None
    if tries_left(row) <= 0:
        fail(row, ProblemError(Code.UNAVAILABLE, f"The import failed {TRIES} times. Contact the operator."))
    else:
        row.tries, row.due_at = row.tries + 1, func.now() + LEASE
    session.flush()
    session.refresh(row)
    return row


def tries_left(row: Import) -> int:
    """Return how often an import can still be tried."""
    return TRIES - (row.tries - row.outages)


def postpone(row: Import) -> None:
    """End a try because the object storage was not available. The pause until the next try doubles each time."""
    row.due_at = func.now() + min(LEASE * 2 ** min(row.outages, 10), LONGEST_PAUSE)
    row.outages += 1


def renew(session: Session, claimed: Import) -> None:
    """Extend the lease of a claimed import. Does nothing if another importer has claimed it since."""
    session.execute(update(Import).where(*_mine(claimed)).values(due_at=func.now() + LEASE))


def start_check(row: Import) -> None:
    """Queue the import for an importer, which checks the uploaded file or fetches the source."""
    row.state, row.due_at = ImportState.CHECKING, func.now()


def lock_claimed(session: Session, claimed: Import) -> Import | None:
    """Lock and return the row of a claimed import. Returns None if another importer has claimed it since."""
    return session.scalars(select(Import).where(*_mine(claimed)).with_for_update()).first()


def _mine(claimed: Import) -> tuple[ColumnElement[bool], ...]:
    """Return conditions for the row of a claimed import that no other importer has claimed since."""
    return Import.id == claimed.id, Import.tries == claimed.tries, Import.due_at.is_not(None)


def is_unfinished(session: Session, import_id: str) -> bool:
    """Return whether the import exists and is neither done nor failed."""
    state = session.scalar(select(Import.state).where(Import.id == import_id))
    return state in UNFINISHED


def complete(row: Import, dataset: Dataset) -> None:
    """Mark the import as done. `dataset` is the dataset that it created."""
    row.state, row.due_at, row.dataset_id = ImportState.DONE, None, dataset.id


def fail(row: Import, problem: ProblemError) -> None:
    """Mark the import as failed because of `problem`."""
    row.state, row.due_at, row.error = ImportState.FAILED, None, _failure(problem)


def late_uploads(session: Session) -> list[tuple[str, str]]:
    """Return the uploads that are incomplete after `UPLOAD_EXPIRY`, as (import id, id of the multipart upload)."""
    late = (Import.state == ImportState.RECEIVING, Import.created_at < func.now() - UPLOAD_EXPIRY)
    rows = session.execute(select(Import.id, Import.upload).where(*late)).all()
    return [(import_id, upload) for import_id, upload in rows if upload is not None]


def expire(session: Session, import_id: str) -> None:
    """Mark a late upload as failed, if it is still incomplete. Its parts must have been deleted before."""
    rule, way_out = f"must all arrive within {UPLOAD_EXPIRY.days} days", "Upload the file again."
    flaw = Flaw("parts", rule, "incomplete", way_out)
    problem = ProblemError(Code.TOO_SLOW, f"The parts of the file {rule}; some did not. {way_out}", (flaw,))
    late = (Import.id == import_id, Import.state == ImportState.RECEIVING)
    if row := session.scalars(select(Import).where(*late).with_for_update()).first():
        fail(row, problem)


def delete_old(session: Session, limit: int) -> int:
    """Delete up to `limit` finished imports that are older than `RETENTION`. Return their number."""
    finished = Import.state.in_((ImportState.DONE, ImportState.FAILED))
    old = select(Import.id).where(finished, Import.created_at < func.now() - RETENTION).limit(limit)
    deleted = delete(Import).where(Import.id.in_(old.scalar_subquery()))
    return len(session.scalars(deleted.returning(Import.id)).all())


def _failure(problem: ProblemError) -> Json:
    """Return the problem as JSON, in the format of the import's row."""
    return {"code": problem.code, "message": problem.message, "errors": [asdict(flaw) for flaw in problem.flaws]}
