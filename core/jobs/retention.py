"""How long things are kept: a checkpoint for as long as its job asked for, a dataset until no job has used it for long.

Here rows go; `worker.cleanup` removes the objects that no row names any more.
"""

from datetime import timedelta

from sqlalchemy import exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.jobs.transitions import record_event
from core.settings import Settings
from core.specs import JobSpec
from core.tables import AuditEntry, Checkpoint, Chore, Dataset, Job

EXPIRED = "checkpoint.expired"
BATCH = 1000
NOBODY = "retention"
"""Who deletes a dataset, in the audit log."""


def days(spec: JobSpec, settings: Settings) -> int:
    """For how long the job's checkpoint is kept; 0: for good."""
    limits = [limit for limit in (spec.output.retention_days, settings.checkpoint_days) if limit]
    return min(limits, default=0)


def due(session: Session, chore: str, seconds: float) -> bool:
    """Whether it was last done so long ago. It counts as done now, so that one of all the workers does it."""
    late = Chore.done_at < func.now() - timedelta(seconds=seconds)
    again = (
        insert(Chore)
        .values(name=chore)
        .on_conflict_do_update(index_elements=["name"], set_={"done_at": func.now()}, where=late)
    )
    return session.scalar(again.returning(Chore.name)) is not None


def expire_checkpoints(session: Session) -> list[str]:
    """Delete the rows of those whose time is over and that no other job is to repair; tell their jobs' readers. Ids."""
    wanted = exists().where(Job.spec["model"].astext == Checkpoint.job_id, Job.finished_at.is_(None))
    late = (
        select(Checkpoint)
        .where(Checkpoint.expires_at < func.now(), ~wanted)
        .order_by(Checkpoint.expires_at)
        .limit(BATCH)
    )
    rows = session.scalars(late.with_for_update(skip_locked=True)).all()
    for row in rows:
        session.execute(update(Job).where(Job.id == row.job_id).values(updated_at=func.now()))
        record_event(session, row.job_id, row.attempt, EXPIRED, {"checkpoint": row.id, "sha256": row.sha256})
        session.delete(row)
    return [row.id for row in rows]


def expire_datasets(session: Session, days: int) -> list[str]:
    """Mark those as deleted that no job that has not ended names, nor one that ended within so many days; their ids."""
    if not days:
        return []
    late = func.now() - timedelta(days=days)
    used = exists().where(Job.dataset_id == Dataset.id, or_(Job.finished_at.is_(None), Job.finished_at > late))
    unused = (Dataset.deleted_at.is_(None), Dataset.created_at < late, ~used)
    held = session.scalars(select(Dataset.id).where(*unused).limit(BATCH).with_for_update(skip_locked=True)).all()
    # A job that was made before they were held is seen by this second look; a later one waits, and is refused.
    change = update(Dataset).where(Dataset.id.in_(held), *unused).values(deleted_at=func.now())
    gone = session.execute(change.returning(Dataset.tenant, Dataset.id)).all()
    session.add_all(
        AuditEntry(tenant=tenant, key_id=NOBODY, request_id="", action="expire_dataset", target=dataset_id)
        for tenant, dataset_id in gone
    )
    return [dataset_id for _, dataset_id in gone]
