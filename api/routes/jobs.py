"""Jobs: create, clone, estimate, list, get, delete. The actions on a job are in `api.routes.actions`."""

import time
from datetime import datetime
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from api.changes import JobVersion
from api.connections import while_connected
from api.deps import LIMITED_WAITS, Auth, CurrentServices, JobId, JsonRoute, Limit
from api.errors import BODY, responses
from api.etags import ACCEPTED, TAGGED, IfNoneMatch, etag_of, tagged_json
from api.schemas.estimates import EstimateSpec, EstimateView
from api.schemas.jobs import JobDetail, JobPage, JobView
from api.usecases import jobs as usecases
from core import ids
from core.errors import Code
from core.jobs import jobs
from core.jobs.overrides import apply_overrides
from core.request_fields import StorableText
from core.specs import JobSpec
from core.states import Status
from core.tables import Json

RETRY_AFTER_SECONDS = "2"
"""Seconds in the header Retry-After of a new job: the pause before its first poll."""
CREATE_ERRORS = (
    *BODY,
    Code.IDEMPOTENCY_IN_FLIGHT,
    Code.MODEL_NOT_FOUND,
    Code.MODEL_REFUSED,
    Code.IDEMPOTENCY_CONFLICT,
    Code.LIMIT_REACHED,
    Code.HUB_UNREACHABLE,
    Code.HUB_BUSY,
    Code.UNAVAILABLE,
)
Idempotency = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Key of your choice. A retry with the same key and body returns the same job.",
    ),
]
MetadataPair = Annotated[str, Field(pattern=r"^[^=\x00]{1,64}=[^\x00]{0,512}$")]
Overrides = Annotated[
    dict[str, Any],
    Body(
        description="Fields of a job to change, at any depth (RFC 7396). `null` restores the default.",
        json_schema_extra={"example": {"sparsity": 0.7, "repair": {"steps": 1000}}},
    ),
]

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)


@router.post("", status_code=HTTPStatus.ACCEPTED, responses={**ACCEPTED, **responses(*CREATE_ERRORS)})
def create_job(
    services: CurrentServices, caller: Auth, spec: JobSpec, response: Response, idempotency_key: Idempotency = None
) -> JobDetail:
    """Create a job that prunes a model and repairs it. A job that cannot run is rejected immediately."""
    return _accepted(response, usecases.create(services, caller, spec, idempotency_key=idempotency_key))


@router.post(
    "/estimate",
    responses=responses(*BODY, Code.MODEL_NOT_FOUND, Code.MODEL_REFUSED, Code.HUB_UNREACHABLE, Code.HUB_BUSY),
)
def estimate_job(services: CurrentServices, caller: Auth, spec: EstimateSpec) -> EstimateView:
    """Estimate a job's memory, time and storage, and which workers can run it. No job is created."""
    return usecases.estimate(services, caller, spec)


@router.get("", response_model=JobPage, responses=TAGGED)
def list_jobs(
    services: CurrentServices,
    caller: Auth,
    *,
    status: Annotated[Status | None, Query(description="Only jobs with this status.")] = None,
    model: Annotated[
        StorableText | None, Query(max_length=512, description="Only jobs with this value of `model`.")
    ] = None,
    metadata: Annotated[
        list[MetadataPair] | None,
        Query(
            max_length=16, description="Only jobs with this `name=value` in `metadata`. If repeated, all must match."
        ),
    ] = None,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("job"), description="Id of a job. The page starts after it.")
    ] = None,
    limit: Limit = 20,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """List your jobs, newest first."""
    pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in metadata or [])]
    with services.sessions.begin() as session:
        rows, more = jobs.page(
            session, caller.tenant, status=status, model=model, metadata=pairs, after=after, limit=limit
        )
    return tagged_json(JobPage(data=[JobView.of(row) for row in rows], has_more=more), if_none_match)


@router.get(
    "/{job_id}", dependencies=LIMITED_WAITS, response_model=JobDetail, responses={**TAGGED, **responses(Code.NOT_FOUND)}
)
async def get_job(
    services: CurrentServices,
    caller: Auth,
    request: Request,
    job_id: JobId,
    *,
    wait: Annotated[
        int, Query(ge=0, le=60, description="Maximum seconds to wait for a change of the job, 0 to 60.")
    ] = 0,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Get one job: status, progress, scores, error.

    With `wait`, answers when the job has changed since the ETag in `If-None-Match` (without that header: since this
    request), or after `wait` seconds. A change of the place in the queue, or of the reason why a queued job waits, does
    not end the wait.
    """
    deadline = time.monotonic() + wait
    first = await run_sync(usecases.get, services, caller, job_id)
    view, response = first, tagged_json(first, if_none_match)
    while _may_wait(view, response, first, if_none_match) and (seconds := deadline - time.monotonic()) > 0:
        is_new = partial(_is_newer, view.updated_at)
        await while_connected(request, partial(services.changes.wait, job_id, is_new, seconds))
        view = await run_sync(usecases.get, services, caller, job_id, limiter=services.changes.readers)
        response = tagged_json(view, if_none_match)
    return response


@router.delete("/{job_id}", responses=responses(Code.NOT_FOUND, Code.CONFLICT))
def delete_job(services: CurrentServices, caller: Auth, job_id: JobId) -> JobDetail:
    """Delete a job that has ended, with its events, metrics and checkpoints.

    The stored files are deleted within two days. The audit log keeps its entries about the job.
    """
    return usecases.delete(services, caller, job_id)


@router.post(
    "/{job_id}/clone",
    status_code=HTTPStatus.ACCEPTED,
    responses={**ACCEPTED, **responses(Code.NOT_FOUND, *CREATE_ERRORS)},
)
def clone_job(
    services: CurrentServices,
    caller: Auth,
    job_id: JobId,
    overrides: Overrides,
    response: Response,
    *,
    idempotency_key: Idempotency = None,
) -> JobDetail:
    """Create a job with the settings of another job, except for the fields in the body. `null` restores a default.

    The new job uses the same commit of the model, unless you give `model` or `revision`.
    """
    with services.sessions.begin() as session:
        original = jobs.get(session, caller.tenant, job_id).spec
    spec = _overridden(original, overrides)
    job = usecases.create(services, caller, spec, idempotency_key=idempotency_key, operation="clone_job")
    return _accepted(response, job)


def _accepted(response: Response, job: JobDetail) -> JobDetail:
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = RETRY_AFTER_SECONDS
    response.headers["ETag"] = etag_of(job)
    return job


def _overridden(original: Json, overrides: Json) -> JobSpec:
    try:
        return apply_overrides(original, overrides)
    except ValidationError as error:
        entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
        raise RequestValidationError(entries) from error


def _may_wait(view: JobDetail, response: Response, first: JobDetail, if_none_match: str) -> bool:
    """Return True if the client already has this state of the job and the job can still change."""
    unchanged = response.status_code == HTTPStatus.NOT_MODIFIED if if_none_match else view == first
    return unchanged and not view.status.final


def _is_newer(updated_at: datetime, version: JobVersion) -> bool:
    return version.updated_at != updated_at
