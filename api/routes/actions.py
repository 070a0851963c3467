"""Actions on a job: cancel, pause, resume, stop, start. All are idempotent."""

from fastapi import APIRouter

from api.deps import Auth, CurrentServices, JobId
from api.errors import responses
from api.schemas.jobs import JobDetail
from api.usecases import jobs
from core.errors import Code

ERRORS = responses(Code.NOT_FOUND, Code.CONFLICT)

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


@router.post("/cancel", responses=ERRORS)
def cancel_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Cancel a job immediately and publish nothing. Idempotent.

    A worker that runs the job stops at its next heartbeat. Until then its device stays busy.
    """
    return jobs.act(services, caller, job_id, "cancel")


@router.post("/pause", responses=ERRORS)
def pause_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Pause a job until it is resumed. A running job saves its state first. Idempotent."""
    return jobs.act(services, caller, job_id, "pause")


@router.post("/resume", responses=ERRORS)
def resume_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Resume a paused job from its newest saved state. Idempotent."""
    return jobs.act(services, caller, job_id, "resume")


@router.post("/stop", responses=ERRORS)
def stop_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """End training early and publish the result so far. Idempotent.

    A job that is not running and has no saved state is cancelled instead, because there is nothing to publish.
    """
    return jobs.act(services, caller, job_id, "stop")


@router.post("/start", responses=ERRORS)
def start_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Queue a job that was created with `auto_start: false`. Idempotent."""
    return jobs.act(services, caller, job_id, "start")
