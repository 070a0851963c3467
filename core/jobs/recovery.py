"""What the sweep finds: jobs whose worker fell silent, and queued jobs whose hint was lost.

The sweep is a thread of every worker; an advisory lock lets one of them do the work at a time.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from core.capability import UNLIMITED, Capability, fits
from core.jobs.attempts import Fault
from core.jobs.transitions import requeue, transition
from core.states import Reason, Status, Transition
from core.tables import Job, JobEvent

SWEEP_LOCK = 0x5EF7
"""Any number that no other advisory lock of this database uses; those of `core.jobs.jobs` are 64-bit hashes."""


def requeue_lost(session: Session, max_failures: int) -> list[str]:
    """Take back running jobs whose lease ran out: queued again or paused, or failed at `max_failures`. Their ids."""
    if not session.scalar(select(func.pg_try_advisory_xact_lock(SWEEP_LOCK))):
        return []
    silent = (
        select(Job)
        .where(Job.status == Status.RUNNING, Job.lease_expires_at < func.now())
        .order_by(Job.lease_expires_at)
        .with_for_update(skip_locked=True)
    )
    return [job.id for job in session.scalars(silent).all() if _take_back(session, job, max_failures)]


def waiting_for_space(session: Session, reason: Reason, has: Capability = UNLIMITED) -> Sequence[str]:
    """The jobs that are paused for this reason and that such a worker could take, their rows locked; their ids."""
    paused = (
        select(Job.id)
        .where(Job.status == Status.PAUSED, Job.reason.has_key("needs"))
        .where(Job.reason["code"].astext == reason, fits(has))
        .with_for_update(skip_locked=True)
    )
    return session.scalars(paused).all()


def resume_waiting_for_space(session: Session, reason: Reason, has: Capability) -> list[str]:
    """Queue those jobs again."""
    return [
        job_id for job_id in waiting_for_space(session, reason, has) if transition(session, job_id, Transition.RESUMED)
    ]


def mark_for_notification(session: Session, older_than_seconds: float, limit: int) -> Sequence[str]:
    """Mark up to `limit` queued jobs that no message has pointed at for so long, the next to run first; their ids."""
    old = func.now() - timedelta(seconds=older_than_seconds)
    waiting = (
        select(Job.id)
        .where(Job.status == Status.QUEUED, or_(Job.notified_at.is_(None), Job.notified_at < old))
        .order_by(Job.priority.desc(), Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    mark = (
        update(Job)
        .where(Job.id.in_(waiting.scalar_subquery()))
        .values(notified_at=func.now(), updated_at=Job.updated_at)
        .returning(Job.id)
    )
    return session.scalars(mark, execution_options={"synchronize_session": False}).all()


def _take_back(session: Session, job: Job, max_failures: int) -> bool:
    failures = job.failures + 1
    data = {"worker": job.worker}
    if failures < max_failures:
        return requeue(session, job.id, Transition.LOST, attempt=job.attempt, data=data)
    message = f"The worker of attempt {job.attempt} fell silent; after {failures} failures no more attempts are made."
    before = (
        select(JobEvent.data["error"]["message"].astext)
        .where(JobEvent.job_id == job.id, JobEvent.type == f"job.{Transition.RETRIED}")
        .order_by(JobEvent.id.desc())
        .limit(1)
    )
    if told := session.scalar(before):
        message += f" The last one that could still tell said: {told}"
    error = {"fault": Fault.SYSTEM, "code": "worker_lost", "message": message}
    return transition(
        session,
        job.id,
        Transition.FAILED,
        attempt=job.attempt,
        data={**data, "error": error},
        error=error,
        failures=failures,
    )
