"""What is asked of a job: cancel, pause, resume, stop, start. Each may be asked again, which changes nothing."""

from collections.abc import Callable

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.deps import Auth, CurrentServices, JobId, Services
from api.errors import responses
from api.routes.jobs import detail
from api.schemas.jobs import JobDetail
from core.access import audit
from core.access.audit import Caller
from core.errors import Code
from core.infra import queue
from core.jobs import actions
from core.states import Status
from core.tables import Job

REFUSALS = responses(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID_REQUEST)

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


@router.post("/cancel", operation_id="cancel_job", responses=REFUSALS)
def cancel_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """End a job at once and keep nothing of it; again is no error. Its device may be busy for one more heartbeat."""
    return ask(services, caller, job_id, actions.cancel, "cancel_job")


@router.post("/pause", operation_id="pause_job", responses=REFUSALS)
def pause_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Keep a job from running until it is resumed; again is no error. A running one saves its state first."""
    return ask(services, caller, job_id, actions.pause, "pause_job")


@router.post("/resume", operation_id="resume_job", responses=REFUSALS)
def resume_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Let a paused job go on from its newest state; again is no error."""
    return ask(services, caller, job_id, actions.resume, "resume_job")


@router.post("/stop", operation_id="stop_job", responses=REFUSALS)
def stop_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """End training early and publish what there is; again is no error.

    Of a job that has saved nothing and does not run there is nothing to publish: it is cancelled.
    """
    return ask(services, caller, job_id, actions.stop, "stop_job")


@router.post("/start", operation_id="start_job", responses=REFUSALS)
def start_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Queue a job that was made with `auto_start: false`; again is no error."""
    return ask(services, caller, job_id, actions.start, "start_job")


def ask(
    services: Services, caller: Caller, job_id: str, wish: Callable[[Session, str, str], Job], action: str
) -> JobDetail:
    """The job after the wish. `action` is for the audit."""
    with services.sessions.begin() as session:
        job = wish(session, caller.tenant, job_id)
        audit.record(session, caller, action, job.id)
        view = detail(services, session, job)
    if job.status == Status.QUEUED:
        queue.notify(services.broker)
    return view
