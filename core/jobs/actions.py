"""What a tenant may ask of a job: cancel, pause, resume, stop, start. Asking again changes nothing and is no error.

What is asked of a job that waits happens at once. A running one is told by the answer to its worker's next heartbeat,
except of a cancel, which is the fence itself: the worker finds that the job is no longer its own.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.errors import Code, ProblemError
from core.jobs import jobs
from core.jobs.transitions import hold, transition
from core.states import Reason, Status, Transition
from core.tables import Job

WAITS = "The job was paused by POST /jobs/{}/pause; POST /jobs/{}/resume lets it go on."


def cancel(session: Session, tenant: str, job_id: str) -> Job:
    """End it at once and keep nothing. CONFLICT when it ended otherwise."""
    job = _held(session, tenant, job_id)
    if job.status != Status.CANCELLED:
        _refuse_ended(job, "cancelled")
        transition(session, job.id, Transition.CANCELLED)
    return _fresh(session, job)


def pause(session: Session, tenant: str, job_id: str) -> Job:
    """Pause it: a running one saves its state and gives its device free first. CONFLICT when it has ended.

    One that waits for room waits for its tenant from then on.
    """
    job = _held(session, tenant, job_id)
    _refuse_ended(job, "paused")
    if job.status == Status.QUEUED or (job.reason and "needs" in job.reason):
        hold(session, job.id, Reason.ASKED, WAITS.format(job.id, job.id))
    elif job.status == Status.RUNNING and not job.pausing:
        transition(session, job.id, Transition.PAUSING, pausing=True)
    return _fresh(session, job)


def resume(session: Session, tenant: str, job_id: str) -> Job:
    """Queue a paused job again, whyever it is paused; take back a pause that has not come about. CONFLICT as above."""
    job = _held(session, tenant, job_id)
    _refuse_ended(job, "resumed")
    if job.status == Status.PAUSED:
        transition(session, job.id, Transition.RESUMED)
    elif job.pausing:
        transition(session, job.id, Transition.UNPAUSED, pausing=False)
    return _fresh(session, job)


def start(session: Session, tenant: str, job_id: str) -> Job:
    """Queue a job that was made with `auto_start: false`. CONFLICT when it has ended, or was started and is paused."""
    job = _held(session, tenant, job_id)
    _refuse_ended(job, "started")
    if job.reason and job.reason["code"] == Reason.NOT_STARTED:
        transition(session, job.id, Transition.STARTED)
    elif job.status == Status.PAUSED:
        raise ProblemError(Code.CONFLICT, f"{job.id} was started before, and is paused. POST /jobs/{job.id}/resume.")
    return _fresh(session, job)


def stop(session: Session, tenant: str, job_id: str) -> Job:
    """Train no further, and publish what there is. A job that no worker runs and that has saved nothing is cancelled.

    Steps that are lost after this are taken again first.
    CONFLICT when it has ended without having been told to stop.
    """
    job = _held(session, tenant, job_id)
    if job.stopping or job.status == Status.CANCELLED:
        return job
    _refuse_ended(job, "stopped")
    if job.status != Status.RUNNING and job.resume is None:
        transition(session, job.id, Transition.CANCELLED, data={"stopped": True})
        return _fresh(session, job)
    transition(session, job.id, Transition.STOPPING, stopping=True, stop_step=job.step, pausing=False)
    if job.status == Status.PAUSED:
        transition(session, job.id, Transition.RESUMED)
    return _fresh(session, job)


def _held(session: Session, tenant: str, job_id: str) -> Job:
    """The tenant's job, its row locked, so that what is decided here still holds when it is written; or NOT_FOUND."""
    job = jobs.get(session, tenant, job_id)
    return session.scalars(
        select(Job).where(Job.id == job.id).with_for_update(), execution_options={"populate_existing": True}
    ).one()


def _fresh(session: Session, job: Job) -> Job:
    session.refresh(job)
    return job


def _refuse_ended(job: Job, asked: str) -> None:
    if Status(job.status).final:
        raise ProblemError(
            Code.CONFLICT, f"{job.id} is {job.status} already; only a job that has not ended can be {asked}."
        )
