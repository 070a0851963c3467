"""Pushes of a job's result into repositories of the model hub."""

from http import HTTPStatus

from fastapi import APIRouter

from api.deps import Auth, CurrentServices, JobId, JsonRoute
from api.errors import BODY, responses
from api.schemas.pushes import PushList, PushRequest, PushView
from api.usecases import pushes
from core.errors import Code

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], route_class=JsonRoute)


@router.post(
    "/push",
    status_code=HTTPStatus.ACCEPTED,
    responses=responses(*BODY, Code.NOT_FOUND, Code.CONFLICT, Code.LIMIT_REACHED),
)
def push_job(services: CurrentServices, caller: Auth, job_id: JobId, target: PushRequest) -> PushView:
    """Push the result of a job into a repository of the model hub, with your tenant's hub token. Idempotent.

    A push to the same branch starts again immediately, unless it is running.
    """
    return pushes.push(services, caller, job_id, target)


@router.get("/pushes", responses=responses(Code.NOT_FOUND))
def list_job_pushes(services: CurrentServices, caller: Auth, job_id: JobId) -> PushList:
    """List the pushes of a job: status, address of the commit, error."""
    return PushList(data=pushes.list_all(services, caller, job_id))
