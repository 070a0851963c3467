"""Jobs: made, listed, looked at, cancelled."""

import hashlib
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from sqlalchemy.orm import Session

from api.deps import Auth, Carries, Here, JobId, Limit
from api.errors import responses
from api.schemas import JobDetail, JobPage, JobView
from core import audit, ids, jobs, queue
from core.admission import admit
from core.errors import Code
from core.specs import JobSpec
from core.states import Status
from core.tables import Job

POLL_SECONDS = "2"

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.post(
    "",
    operation_id="create_job",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[Depends(Carries("application/json"))],
    responses=responses(
        Code.IDEMPOTENCY_IN_FLIGHT,
        Code.TOO_LARGE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.INVALID_REQUEST,
        Code.MODEL_NOT_FOUND,
        Code.MODEL_REFUSED,
        Code.IDEMPOTENCY_CONFLICT,
        Code.HUB_UNREACHABLE,
    ),
)
def create_job(
    services: Here,
    caller: Auth,
    spec: JobSpec,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            max_length=255,
            pattern=r"^[\x20-\x7e]+$",
            description="Sent again with the same body, the same job is answered.",
        ),
    ] = None,
) -> JobDetail:
    """Make a job: prune a model and repair it. What cannot work is refused now."""
    job, new = admit(services.settings, services.sessions, caller, spec, idempotency_key)
    if new:
        queue.hint(services.broker)
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = POLL_SECONDS
    with services.sessions.begin() as session:
        return _detail(session, job)


@router.get("", operation_id="list_jobs", responses=responses(Code.INVALID_REQUEST))
def list_jobs(
    services: Here,
    caller: Auth,
    status: Annotated[Status | None, Query(description="Only jobs of this status.")] = None,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("job"), description="Id of a job: those made before it.")
    ] = None,
    limit: Limit = 20,
) -> JobPage:
    """Your jobs, newest first."""
    with services.sessions.begin() as session:
        rows, more = jobs.page(session, caller.tenant, status=status, after=after, limit=limit)
    return JobPage(data=[JobView.of(row) for row in rows], has_more=more)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_model=JobDetail,
    responses={
        304: {
            "description": "It is still what `If-None-Match` names.",
            "headers": {"ETag": {"schema": {"type": "string"}}},
        },
        **responses(Code.NOT_FOUND, Code.INVALID_REQUEST),
    },
)
def get_job(
    services: Here,
    caller: Auth,
    job_id: JobId,
    if_none_match: Annotated[
        str, Header(description="ETag of the answer that you have: 304 while it still holds.")
    ] = "",
) -> Response:
    """One job: status, progress, scores, error."""
    with services.sessions.begin() as session:
        body = _detail(session, jobs.get(session, caller.tenant, job_id)).model_dump_json()
    etag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _matches(if_none_match, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    responses=responses(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID_REQUEST),
)
def cancel_job(services: Here, caller: Auth, job_id: JobId) -> JobDetail:
    """End a queued or running job at once; again is no error. Its device may be busy for one more heartbeat."""
    with services.sessions.begin() as session:
        job = jobs.cancel(session, caller.tenant, job_id)
        audit.note(session, caller, "cancel_job", job.id)
        return _detail(session, job)


def _detail(session: Session, job: Job) -> JobDetail:
    return JobDetail.of(job, queue_position=jobs.position(session, job))


def _matches(if_none_match: str, etag: str) -> bool:
    """RFC 9110, 13.1.2: a list of tags, compared weakly, or `*`."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
