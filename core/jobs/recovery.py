"""Recover jobs whose worker stopped sending heartbeats, and queued jobs whose notification was lost.

The sweep of every worker calls these functions. An advisory lock ensures that only one sweep requeues at a time.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from core.capability import Capability, can_run
from core.infra.database import Lock, try_lock
from core.jobs.attempts import Fault
from core.jobs.transitions import requeue, transition, with_way_out
from core.states import STATUS_EVENT_PREFIX, Reason, Status, Transition
from core.tables import Job, JobEvent

FIRST_WAIT, LONGEST_WAIT = 30.0, 3600.0
"""`FIRST_WAIT`: seconds that a job waits after its second pause for the same reason within a day.

Each further wait is twice the one before plus 30 seconds (90, 210, …), but at most `LONGEST_WAIT`. A check can be
wrong: a bucket may accept a small object and not a large one. Without the wait, the job would run again and again.
"""


def requeue_lost(session: Session, max_failures: int) -> list[str]:
    """End the attempts of running jobs whose lease has expired. Return the ids of these jobs.

    A job is requeued, or paused if its tenant has requested a pause, or failed after `max_failures` failures.
    """
    if not try_lock(session, Lock.SWEEP):
        return []
    expired = (
        select(Job)
        .where(Job.status == Status.RUNNING, Job.lease_expires_at < func.now())
        .order_by(Job.lease_expires_at)
        .with_for_update(skip_locked=True)
    )
    return [job.id for job in session.scalars(expired).all() if _requeue_or_fail(session, job, max_failures)]


def paused_for(session: Session, reason: Reason, capability: Capability) -> Sequence[str]:
    """Lock the jobs that are paused for `reason` and can run on a worker with this capability. Return their ids.

    Jobs that were paused several times lately are left out until they have waited, see `FIRST_WAIT`.
    """
    paused = (
        select(Job.id)
        .where(Job.status == Status.PAUSED, Job.reason.has_key("needs"))
        .where(Job.reason["code"].astext == reason, can_run(capability), _has_waited(reason))
        .with_for_update(skip_locked=True)
    )
    return session.scalars(paused).all()


def _has_waited(reason: Reason) -> ColumnElement[bool]:
    pauses = (
        select(JobEvent)
        .where(JobEvent.job_id == Job.id, JobEvent.type == f"{STATUS_EVENT_PREFIX}{Transition.PAUSED}")
        .where(JobEvent.data["reason"]["code"].astext == reason)
        .where(JobEvent.created_at > func.now() - timedelta(days=1))
    )
    count = pauses.with_only_columns(func.count()).scalar_subquery()
    last = pauses.with_only_columns(func.max(JobEvent.created_at)).scalar_subquery()
    wait = func.least(FIRST_WAIT * (func.power(2, func.least(count, 20) - 1) - 1), LONGEST_WAIT)
    return or_(last.is_(None), func.now() - last >= wait * timedelta(seconds=1))


def resume_paused_for(session: Session, reason: Reason, capability: Capability) -> list[str]:
    """Requeue the jobs that are paused for `reason` and can run on a worker with this capability. Return their ids."""
    job_ids = paused_for(session, reason, capability)
    return [job_id for job_id in job_ids if transition(session, job_id, Transition.RESUMED)]


def mark_for_notification(session: Session, older_than_seconds: float, limit: int) -> Sequence[str]:
    """Set the time of the last notification to now for queued jobs that have waited too long. Return their ids.

    These are up to `limit` jobs whose last notification is older than `older_than_seconds`, in any order, because a
    notification names no job.
    """
    old = func.now() - timedelta(seconds=older_than_seconds)
    waiting = (
        select(Job.id)
        .where(Job.status == Status.QUEUED, or_(Job.notified_at.is_(None), Job.notified_at < old))
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


def _requeue_or_fail(session: Session, job: Job, max_failures: int) -> bool:
    failures = job.failures + 1
    data = {"worker": job.worker}
    if failures < max_failures:
        return requeue(session, job.id, Transition.LOST, attempt=job.attempt, data=data)
    message = (
        f"The worker of attempt {job.attempt} stopped responding. After {failures} failures the job is not retried."
    )
    last_error = (
        select(JobEvent.data["error"]["message"].astext)
        .where(JobEvent.job_id == job.id, JobEvent.type == f"{STATUS_EVENT_PREFIX}{Transition.RETRIED}")
        .order_by(JobEvent.id.desc())
        .limit(1)
    )
    if last_message := session.scalar(last_error):
        message += f" The last error that a worker reported: {last_message}"
    message = with_way_out(message, job.id)
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
