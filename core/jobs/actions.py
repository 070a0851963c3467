"""Actions of a tenant on a job: cancel, pause, resume, stop, start, delete. Each except `delete` is idempotent.

An action on a waiting job takes effect at once. If the job is running, its worker learns of the action from the reply
to its next heartbeat. A cancel takes effect at once for a running job too: the next write of its worker raises
LeaseLostError.
"""

from sqlalchemy import delete as delete_rows
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import Code, ProblemError
from core.jobs import jobs
from core.jobs.transitions import PAUSED_MESSAGE, hold, record_event, transition
from core.states import STATUS_EVENT_PREFIX, Reason, Status, Transition
from core.tables import Checkpoint, Job


def cancel(session: Session, tenant: str, job_id: str) -> Job:
    """Cancel a job at once and publish nothing. Raises CONFLICT if the job has succeeded or failed."""
    job = jobs.get(session, tenant, job_id, change=True)
    if job.status != Status.CANCELLED:
        _require_not_ended(job, "cancelled")
        transition(session, job.id, Transition.CANCELLED)
    return _refreshed(session, job)


def pause(session: Session, tenant: str, job_id: str) -> Job:
    """Pause a job. A running job first saves its state and frees its device. Raises CONFLICT if the job has ended.

    A job that waits for space or for a server then stays paused until the tenant resumes it.
    """
    job = jobs.get(session, tenant, job_id, change=True)
    _require_not_ended(job, "paused")
    if job.status == Status.QUEUED or (job.reason and "needs" in job.reason):
        hold(session, job.id, Reason.ASKED, PAUSED_MESSAGE.format(job.id))
    elif job.status == Status.RUNNING and not job.pausing:
        transition(session, job.id, Transition.PAUSING, pausing=True)
    return _refreshed(session, job)


def resume(session: Session, tenant: str, job_id: str) -> Job:
    """Requeue a paused job, whatever the reason of the pause, or cancel a pause that has not taken effect yet.

    A worker then tries to run the job, even if the disk has less free space than the job needed before. Raises CONFLICT
    if the job has ended.
    """
    job = jobs.get(session, tenant, job_id, change=True)
    _require_not_ended(job, "resumed")
    if job.status == Status.PAUSED:
        transition(session, job.id, Transition.RESUMED, needs=Job.needs.op("-")("disk"))
    elif job.pausing:
        transition(session, job.id, Transition.UNPAUSED, pausing=False)
    return _refreshed(session, job)


def start(session: Session, tenant: str, job_id: str) -> Job:
    """Queue a job that was created with `auto_start: false`.

    Raises CONFLICT if the job has ended, or if it was started and is paused now.
    """
    job = jobs.get(session, tenant, job_id, change=True)
    _require_not_ended(job, "started")
    if job.reason and job.reason["code"] == Reason.NOT_STARTED:
        transition(session, job.id, Transition.STARTED)
    elif job.status == Status.PAUSED:
        raise ProblemError(
            Code.CONFLICT, f"{job.id} was started before and is paused now. POST /jobs/{job.id}/resume resumes it."
        )
    return _refreshed(session, job)


def stop(session: Session, tenant: str, job_id: str) -> Job:
    """End training early and publish the result. A job that is not running and has no saved state is cancelled.

    If steps before the stop are lost, they are trained again before the result is published. Raises CONFLICT if the
    job has succeeded or failed without a stop.
    """
    job = jobs.get(session, tenant, job_id, change=True)
    if job.status == Status.CANCELLED or (job.stopping and Status(job.status).final):
        return job
    _require_not_ended(job, "stopped")
    if not job.stopping:
        if job.status != Status.RUNNING and job.resume is None:
            transition(session, job.id, Transition.CANCELLED, data={"stopped": True})
            return _refreshed(session, job)
        transition(session, job.id, Transition.STOPPING, stopping=True, stop_step=job.step, pausing=False)
    return resume(session, tenant, job_id)  # a stop ends a pause


def delete(session: Session, tenant: str, job_id: str) -> Job:
    """Delete a job that has ended, with its events, metrics and checkpoints. Return its last state.

    Only rows are deleted here. `worker.cleanup` deletes the job's objects, which have no row any more. Raises CONFLICT
    if the job has not ended, or if a job that has not ended uses its result as its model.
    """
    _require_ended(jobs.get(session, tenant, job_id))
    # Wait for transactions that create a job with the result as its model. The query below then sees these jobs.
    # The expiry of checkpoints locks in the same order.
    session.scalars(select(Checkpoint.id).where(Checkpoint.job_id == job_id).with_for_update()).all()
    job = jobs.get(session, tenant, job_id, change=True)
    users = select(Job.id).where(Job.tenant == tenant, Job.spec["model"].astext == job.id, Job.finished_at.is_(None))
    if user := session.scalar(users.limit(1)):
        detail = f"{user} uses the result of {job.id} as its model and has not ended. Cancel it, or wait until it ends."
        raise ProblemError(Code.CONFLICT, detail)
    record_event(session, job.id, job.attempt, f"{STATUS_EVENT_PREFIX}{Transition.DELETED}", {})
    # Checkpoints first, because the trigger that counts their bytes reads the job's row.
    for row in (delete_rows(Checkpoint).where(Checkpoint.job_id == job.id), delete_rows(Job).where(Job.id == job.id)):
        session.execute(row, execution_options={"synchronize_session": False})
    return job


def _refreshed(session: Session, job: Job) -> Job:
    session.refresh(job)
    return job


def _require_ended(job: Job) -> None:
    if not Status(job.status).final:
        raise ProblemError(
            Code.CONFLICT,
            f"{job.id} has not ended; it is {job.status}. Only a job that has ended can be deleted. POST"
            f" /jobs/{job.id}/cancel ends it at once.",
        )


def _require_not_ended(job: Job, action: str) -> None:
    if Status(job.status).final:
        raise ProblemError(
            Code.CONFLICT,
            f"{job.id} has ended, with the status {job.status}. Only a job that has not ended can be {action}.",
        )
