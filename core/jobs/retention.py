"""Expire checkpoints whose retention time is over, and datasets that were not used for a long time.

Only rows are deleted here. `worker.cleanup` deletes objects that have no row any more.
"""

from datetime import timedelta

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.jobs.transitions import record_event
from core.settings import Settings
from core.specs import JobSpec
from core.states import UNFINISHED
from core.tables import AuditEntry, Checkpoint, Chore, Dataset, Job, Push

EXPIRED = "checkpoint.expired"
"""Type of the event that a checkpoint has expired."""
BATCH = 1000
"""Maximum number of rows that one call expires. Call again in a new transaction until a call returns fewer."""
AUDIT_KEY_ID = "retention"
"""Value of `AuditEntry.key_id` if a dataset has expired, because no API key deleted it."""


def checkpoint_days(spec: JobSpec, settings: Settings) -> int:
    """Return the number of days for which the checkpoint of this job is kept. The value 0 means permanently."""
    limits = [limit for limit in (spec.output.retention_days, settings.checkpoint_days) if limit]
    return min(limits, default=0)


def claim_chore(session: Session, chore: str, seconds: float) -> bool:
    """Claim a periodic chore. Returns True if nobody has claimed it in the last `seconds` seconds.

    If several workers call this at the same time, only one of them gets True.
    """
    overdue = Chore.done_at < func.now() - timedelta(seconds=seconds)
    claim = (
        insert(Chore)
        .values(name=chore)
        .on_conflict_do_update(index_elements=["name"], set_={"done_at": func.now()}, where=overdue)
    )
    return session.scalar(claim.returning(Chore.name)) is not None


def expire_checkpoints(session: Session) -> list[str]:
    """Delete expired checkpoints, except models of unfinished jobs and results of unfinished pushes. Return their ids.

    Each deletion writes an event of the checkpoint's job.
    """
    in_use = exists().where(Job.spec["model"].astext == Checkpoint.job_id, Job.status.in_(UNFINISHED))
    pushing = exists().where(Push.checkpoint_id == Checkpoint.id, Push.due_at.is_not(None))
    unused = (Checkpoint.expires_at < func.now(), ~in_use, ~pushing)
    first = select(Checkpoint.id).where(*unused).order_by(Checkpoint.expires_at).limit(BATCH)
    locked = session.scalars(first.with_for_update(skip_locked=True)).all()
    # The condition is checked again: a push or job that was created before the rows were locked keeps its checkpoint.
    # A later one waits for the lock.
    rows = session.scalars(select(Checkpoint).where(Checkpoint.id.in_(locked), *unused)).all()
    for row in rows:
        session.execute(update(Job).where(Job.id == row.job_id).values(updated_at=func.now()))
        record_event(session, row.job_id, row.attempt, EXPIRED, {"checkpoint": row.id, "sha256": row.sha256})
        session.delete(row)
    return [row.id for row in rows]


def expire_datasets(session: Session, days: int) -> list[str]:
    """Mark datasets as deleted that were neither uploaded nor used in the last `days` days. Return their ids.

    A dataset is used until all its jobs have ended. With `days` 0, no dataset expires.
    """
    if not days:
        return []
    limit = func.now() - timedelta(days=days)
    recent = or_(Job.finished_at.is_(None), Job.finished_at > limit)
    columns = (Job.dataset_id, Job.retain_dataset_id, Job.evaluate_dataset_id)
    uses = (exists().where(used == Dataset.id, recent) for used in columns)
    unused = (Dataset.deleted_at.is_(None), Dataset.uploaded_at < limit, *(~use for use in uses))
    locked = session.scalars(select(Dataset.id).where(*unused).limit(BATCH).with_for_update(skip_locked=True)).all()
    # The update repeats the condition: a job created before the rows were locked keeps its dataset. A later one waits
    # for the lock and is rejected.
    change = update(Dataset).where(Dataset.id.in_(locked), *unused).values(deleted_at=func.now())
    expired = session.execute(change.returning(Dataset.tenant, Dataset.id)).all()
    session.add_all(
        AuditEntry(tenant=tenant, key_id=AUDIT_KEY_ID, request_id="", action="expire_dataset", target=dataset_id)
        for tenant, dataset_id in expired
    )
    return [dataset_id for _, dataset_id in expired]
