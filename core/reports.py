"""What a job has to tell: events, metrics, checkpoints. The caller has made sure that the job is the tenant's."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.tables import Checkpoint, JobEvent, JobMetric


def events(session: Session, job_id: str, *, after: int, limit: int) -> tuple[Sequence[JobEvent], bool]:
    """Up to `limit` events behind the event `after`, oldest first; and whether there are more."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after).order_by(JobEvent.id)
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def metrics(session: Session, job_id: str, *, after_step: int, limit: int) -> tuple[Sequence[JobMetric], bool]:
    """Up to `limit` rows of steps behind `after_step`, in order; and whether there are more."""
    query = select(JobMetric).where(JobMetric.job_id == job_id, JobMetric.step > after_step).order_by(JobMetric.step)
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """The job's published checkpoints, oldest first."""
    return session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.id)).all()
