"""Jobs: made, cloned, listed, looked at. What is asked of one is in `api.routes.actions`."""

import time
from http import HTTPStatus
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from sqlalchemy.orm import Session

from api.deps import Auth, CurrentServices, JobId, Limit, RequireContentType, Services
from api.errors import BODY, responses
from api.etags import TAGGED, IfNoneMatch, tagged_json
from api.limits import JsonRoute
from api.schemas.estimates import EstimateSpec, EstimateView
from api.schemas.jobs import JobDetail, JobPage, JobView
from core import ids
from core.access.audit import Caller
from core.errors import Code
from core.estimate.estimates import estimate
from core.infra import queue
from core.jobs import fairness, jobs
from core.jobs.admission import admit
from core.jobs.overrides import apply_overrides
from core.specs import JobSpec
from core.states import Status
from core.tables import Job, Json

POLL_SECONDS = "2"

LOOK_SECONDS = 1.0
CREATING = (
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
        description="Sent again with the same body, the same job is answered.",
    ),
]
MetadataPair = Annotated[str, Field(pattern=r"^[^=\x00]{1,64}=[^\x00]{0,512}$")]
Overrides = Annotated[
    dict[str, Any],
    Body(
        description="Fields of a job, at any depth (RFC 7396).",
        json_schema_extra={"example": {"sparsity": 0.7, "repair": {"steps": 1000}}},
    ),
]

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute)


@router.post(
    "",
    operation_id="create_job",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(*CREATING),
)
def create_job(
    services: CurrentServices, caller: Auth, spec: JobSpec, response: Response, idempotency_key: Idempotency = None
) -> JobDetail:
    """Make a job: prune a model and repair it. What cannot work is refused now."""
    return _admitted(services, caller, spec, response, idempotency_key=idempotency_key, action="create_job")


@router.post(
    "/estimate",
    operation_id="estimate_job",
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(
        *BODY,
        Code.MODEL_NOT_FOUND,
        Code.MODEL_REFUSED,
        Code.HUB_UNREACHABLE,
        Code.HUB_BUSY,
    ),
)
def estimate_job(services: CurrentServices, caller: Auth, spec: EstimateSpec) -> EstimateView:
    """What a job would take: memory, time, bytes, and on which worker it fits. Makes nothing, and reads no weight."""
    source = services.models.find(caller.tenant, spec.model, spec.revision)
    anatomy = services.models.dimensions(caller.tenant, source)
    with services.sessions.begin() as session:
        return EstimateView.model_validate(estimate(session, anatomy, spec, services.settings))


@router.get(
    "",
    operation_id="list_jobs",
    response_model=JobPage,
    responses={**TAGGED, **responses(Code.INVALID_REQUEST)},
)
def list_jobs(
    services: CurrentServices,
    caller: Auth,
    *,
    status: Annotated[Status | None, Query(description="Only jobs of this status.")] = None,
    model: Annotated[
        str | None,
        Query(max_length=512, pattern=r"^[^\x00]*$", description="Only jobs of this model, as they named it."),
    ] = None,
    metadata: Annotated[
        list[MetadataPair] | None,
        Query(max_length=16, description="Only jobs with this `name=value` in their metadata; with all, if repeated."),
    ] = None,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("job"), description="Id of a job: those made before it.")
    ] = None,
    limit: Limit = 20,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """Your jobs, newest first."""
    pairs = dict(pair.split("=", 1) for pair in metadata or [])
    with services.sessions.begin() as session:
        rows, more = jobs.page(
            session, caller.tenant, status=status, model=model, metadata=pairs, after=after, limit=limit
        )
    return tagged_json(JobPage(data=[JobView.of(row) for row in rows], has_more=more), if_none_match)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_model=JobDetail,
    responses={**TAGGED, **responses(Code.NOT_FOUND, Code.INVALID_REQUEST)},
)
async def get_job(
    services: CurrentServices,
    caller: Auth,
    request: Request,
    job_id: JobId,
    *,
    wait: Annotated[
        int, Query(ge=0, le=60, description="Seconds, 0 to 60, for which the answer may wait until the job changes.")
    ] = 0,
    if_none_match: IfNoneMatch = "",
) -> Response:
    """One job: status, progress, scores, error. It waits for what differs from `If-None-Match`, or from what is now."""
    deadline = time.monotonic() + wait
    first = await run_sync(_look, services, caller, job_id)
    view, answer = first, tagged_json(first, if_none_match)
    while _may_wait(view, answer, first, if_none_match) and time.monotonic() < deadline:
        await anyio.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        if await request.is_disconnected():
            break
        view = await run_sync(_look, services, caller, job_id)
        answer = tagged_json(view, if_none_match)
    return answer


@router.post(
    "/{job_id}/clone",
    operation_id="clone_job",
    status_code=HTTPStatus.ACCEPTED,
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(Code.NOT_FOUND, *CREATING),
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
    """Make a job that asks for what another one asked for, but for these fields; `null` stands for the default.

    It repairs the very commit that the other one did, unless `model` or `revision` is given.
    """
    with services.sessions.begin() as session:
        former = jobs.get(session, caller.tenant, job_id).spec
    spec = _overridden(former, overrides)
    return _admitted(services, caller, spec, response, idempotency_key=idempotency_key, action="clone_job")


def _admitted(
    services: Services, caller: Caller, spec: JobSpec, response: Response, *, idempotency_key: str | None, action: str
) -> JobDetail:
    job, new = admit(
        services.models,
        services.sessions,
        caller,
        spec,
        idempotency_key=idempotency_key,
        action=action,
        settings=services.settings,
    )
    if new and job.status == Status.QUEUED:
        queue.notify(services.broker)
    response.headers["Location"] = f"/jobs/{job.id}"
    response.headers["Retry-After"] = POLL_SECONDS
    with services.sessions.begin() as session:
        return detail(services, session, job)


def _overridden(former: Json, overrides: Json) -> JobSpec:
    try:
        return apply_overrides(former, overrides)
    except ValidationError as error:
        entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
        raise RequestValidationError(entries) from error


def detail(services: Services, session: Session, job: Job) -> JobDetail:
    """A job as its own page shows it."""
    reason = fairness.waiting_reason(session, job, services.settings)
    return JobDetail.of(job, queue_position=jobs.position(session, job), reason=reason, estimate=job.estimate)


def _look(services: Services, caller: Caller, job_id: str) -> JobDetail:
    with services.sessions.begin() as session:
        return detail(services, session, jobs.get(session, caller.tenant, job_id))


def _may_wait(view: JobDetail, answer: Response, first: JobDetail, if_none_match: str) -> bool:
    """Whether this is what the caller knows already and may yet change."""
    known = answer.status_code == HTTPStatus.NOT_MODIFIED if if_none_match else view == first
    return known and not view.status.final
