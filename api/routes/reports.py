"""Reports of a job: events (pages or a live stream), metrics (JSON or CSV), and checkpoints with download links."""

import csv
import io
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from sqlalchemy.orm import Session

from api.changes import JobVersion
from api.deps import EVENT_STREAM, LIMITED_WAITS, Auth, CurrentServices, JobId, Limit, Services
from api.errors import responses
from api.schemas.reports import (
    CheckpointFileView,
    CheckpointList,
    CheckpointView,
    EventPage,
    EventView,
    MetricPage,
    MetricView,
)
from api.schemas.shared import LARGEST_ID, LARGEST_STEP
from core.errors import Code, ProblemError
from core.jobs import jobs, reports
from core.jobs.reports import MetricPoint
from core.states import Status
from core.tables import Checkpoint, JobMetric
from seft.config import format_of

STREAM_SECONDS = 300.0
"""Maximum seconds of one stream. A client reconnects with `Last-Event-ID`, and its key is then checked again."""
KEEPALIVE_SECONDS = 15.0
"""Seconds without an event after which a comment is sent. Otherwise proxies would close the connection."""
STREAM_PAGE = 100
"""Maximum number of events that a stream reads from the database at a time."""

ERRORS = responses(Code.NOT_FOUND)
Accept = Annotated[str, Header(include_in_schema=False)]

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


@router.get(
    "/events",
    dependencies=LIMITED_WAITS,
    response_model=EventPage,
    responses={
        200: {
            "description": "A page of events, or a stream.",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        204: {"description": "The stream would start after the last event of a finished job."},
        **ERRORS,
    },
)
def list_job_events(
    services: CurrentServices,
    caller: Auth,
    job_id: JobId,
    *,
    accept: Accept = "",
    last_event_id: Annotated[
        int | None,
        Header(
            ge=0,
            le=LARGEST_ID,
            description="Id of the last event that you received. A stream starts after it. Overrides `after`.",
        ),
    ] = None,
    after: Annotated[int, Query(ge=0, le=LARGEST_ID, description="Id of an event. The result starts after it.")] = 0,
    limit: Limit = 100,
) -> Response:
    """List the events of a job, oldest first.

    With `Accept: text/event-stream`, the response is a live stream. It ends when the job ends or after five minutes.
    """
    if EVENT_STREAM in accept:
        return _stream(services, caller.tenant, job_id, after if last_event_id is None else last_event_id)
    with services.sessions.begin() as session:
        job = jobs.get(session, caller.tenant, job_id)
        rows, more = reports.events(session, job.id, after=after, limit=limit)
    return _json(EventPage(data=[EventView.of(row) for row in rows], has_more=more).model_dump_json())


@router.get(
    "/metrics",
    response_model=MetricPage,
    responses={
        200: {
            "description": "A page of metrics.",
            "content": {"text/csv": {"example": "step,learning_rate,loss\r\n1,0.003,3.91\r\n"}},
        },
        **ERRORS,
    },
)
def list_job_metrics(
    services: CurrentServices,
    caller: Auth,
    job_id: JobId,
    *,
    accept: Accept = "",
    after_step: Annotated[int, Query(ge=-1, le=LARGEST_STEP, description="A step. The page starts after it.")] = -1,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Largest number of rows in the page, 1 to 10000.")] = 1000,
    points: Annotated[
        int | None,
        Query(ge=2, le=10_000, description="Merge all steps into at most this many rows, 2 to 10000."),
    ] = None,
) -> Response:
    """List the metrics of a job by step. With `Accept: text/csv`, the response is a table with a column per metric.

    With `points`, consecutive steps are merged into one row. The row has the last of their steps and the averages of
    their values.
    """
    with services.sessions.begin() as session:
        job = jobs.get(session, caller.tenant, job_id)
        rows, more = _metrics(session, job.id, after_step, limit, points)
    views = [MetricView.of(row) for row in rows]
    if "text/csv" in accept:
        return Response(_table(views), media_type="text/csv")
    return _json(MetricPage(data=views, has_more=more).model_dump_json())


@router.get("/checkpoints", responses=ERRORS)
def list_job_checkpoints(services: CurrentServices, caller: Auth, job_id: JobId) -> CheckpointList:
    """List the published checkpoints of a job. Each file has its size, SHA-256 and download links."""
    with services.sessions.begin() as session:
        job = jobs.get(session, caller.tenant, job_id)
        rows = reports.checkpoints(session, job.id)
    return CheckpointList(data=[CheckpointView.of(row, files=_files(services, row)) for row in rows])


def _metrics(
    session: Session, job_id: str, after_step: int, limit: int, points: int | None
) -> tuple[Sequence[JobMetric | MetricPoint], bool]:
    if points is None:
        return reports.metrics(session, job_id, after_step=after_step, limit=limit)
    return reports.downsample_metrics(session, job_id, after_step=after_step, points=points), False


def _files(services: Services, row: Checkpoint) -> list[CheckpointFileView]:
    return [
        CheckpointFileView.of(
            services.storage,
            row.prefix + file["name"],
            name=file["name"],
            size=file["size"],
            sha256=file["sha256"],
            format=format_of(file["name"]),
        )
        for file in row.files
    ]


def _table(views: list[MetricView]) -> str:
    names = sorted({name for view in views for name in view.values})
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *names])
    writer.writeheader()
    writer.writerows({"step": view.step, **view.values} for view in views)
    return text.getvalue()


def _json(body: str) -> Response:
    return Response(body, media_type="application/json")


def _stream(services: Services, tenant: str, job_id: str, after: int) -> Response:
    first, _, ended = _next_events(services, tenant, job_id, after)
    if ended and not first:
        # The only status after which an EventSource does not reconnect.
        return Response(status_code=HTTPStatus.NO_CONTENT)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_events(services, tenant, job_id, after), headers=headers)


async def _events(services: Services, tenant: str, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Yield events until the last event of the job or its deletion, or for `STREAM_SECONDS`.

    No transaction stays open and no thread is held between two reads.
    """
    began = sent = time.monotonic()
    while (left := began + STREAM_SECONDS - time.monotonic()) > 0:
        try:
            read = partial(_next_events, services, tenant, job_id, after)
            rows, more, ended = await run_sync(read, limiter=services.changes.readers)
        except ProblemError:
            return  # the job was deleted; a client that reconnects gets 404
        for row in rows:
            after = row.id
            yield format_sse_event(data_str=row.model_dump_json(), event=row.type, id=str(row.id))
            sent = time.monotonic()
        if more:
            continue
        if ended:
            return
        silence = sent + KEEPALIVE_SECONDS - time.monotonic()
        await services.changes.wait(job_id, partial(_has_news, after), max(0.0, min(left, silence)))
        if time.monotonic() - sent >= KEEPALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            sent = time.monotonic()


def _has_news(after: int, version: JobVersion) -> bool:
    return version.ended or version.last_event > after


def _next_events(services: Services, tenant: str, job_id: str, after: int) -> tuple[list[EventView], bool, bool]:
    """Return the next events, whether there are more, and whether the job had already ended before they were read.

    If it had ended, no further events will be added.
    """
    with services.sessions.begin() as session:
        ended = Status(jobs.get(session, tenant, job_id).status).final
        rows, more = reports.events(session, job_id, after=after, limit=STREAM_PAGE)
    return [EventView.of(row) for row in rows], more, ended
