"""What is asked of a job: cancel, pause, resume, stop, start. Each may be asked again, which changes nothing."""

from fastapi import APIRouter

from api.deps import Auth, CurrentServices, JobId
from api.errors import responses
from api.schemas.jobs import JobDetail
from api.usecases import jobs
from core.errors import Code

REFUSALS = responses(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID_REQUEST)

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


@router.post("/cancel", operation_id="cancel_job", responses=REFUSALS)
def cancel_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """End a job at once and keep nothing of it; again is no error. Its device may be busy for one more heartbeat."""
    return jobs.act(services, caller, job_id, "cancel")


@router.post("/pause", operation_id="pause_job", responses=REFUSALS)
def pause_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Keep a job from running until it is resumed; again is no error. A running one saves its state first."""
    return jobs.act(services, caller, job_id, "pause")


@router.post("/resume", operation_id="resume_job", responses=REFUSALS)
def resume_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Let a paused job go on from its newest state; again is no error."""
    return jobs.act(services, caller, job_id, "resume")


@router.post("/stop", operation_id="stop_job", responses=REFUSALS)
def stop_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """End training early and publish what there is; again is no error.

    Of a job that has saved nothing and does not run there is nothing to publish: it is cancelled.
    """
    return jobs.act(services, caller, job_id, "stop")


@router.post("/start", operation_id="start_job", responses=REFUSALS)
def start_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Queue a job that was made with `auto_start: false`; again is no error."""
    return jobs.act(services, caller, job_id, "start")
