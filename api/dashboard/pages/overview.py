"""The first page: what runs, what waits, what ended, and trouble before all."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api.dashboard.pages.workers import all_seen
from api.dashboard.render import page
from api.dashboard.visitors import Signed
from api.dashboard.words import IN_TURN
from api.deps import CurrentServices, Services
from api.routes.jobs import detail
from api.schemas.jobs import JobDetail
from core.jobs import fairness, jobs
from core.jobs.forecast import Forecast
from core.states import Status

SHOWN = 6
"""Jobs of each kind."""
FRESH = timedelta(days=7)
"""A failure is trouble for so long."""

router = APIRouter()


@router.get("/")
def overview(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """The page."""
    tenant = visitor.caller.tenant
    with services.sessions.begin() as session:
        running, paused, succeeded = (
            _newest(services, session, tenant, status) for status in (Status.RUNNING, Status.PAUSED, Status.SUCCEEDED)
        )
        queued = [detail(services, session, row) for row in jobs.first_in_queue(session, tenant, limit=SHOWN)]
        failed = _newest(services, session, tenant, Status.FAILED, since=datetime.now(UTC) - FRESH)
        counts = jobs.counts(session, tenant)
        seen = all_seen(services, session, tenant)
        forecast = Forecast.now(session, services.settings.sweep_seconds)
        stored = fairness.stored_bytes(session, tenant)
    waiting = queued + paused
    return page(
        request,
        visitor,
        "overview.html",
        running=running,
        waiting=waiting,
        starts={job.id: _start(forecast, job) for job in waiting},
        stored=stored,
        limit=services.settings.tenant_bytes,
        succeeded=succeeded,
        failed=failed,
        counts=counts,
        workers=seen,
        most=jobs.MAX_POSITION,
    )


def _start(forecast: Forecast, job: JobDetail) -> float | None:
    in_turn = job.reason is not None and job.reason.code == IN_TURN
    return forecast.start(job.queue_position) if job.queue_position and in_turn else None


def _newest(
    services: Services, session: Session, tenant: str, status: Status, since: datetime | None = None
) -> list[JobDetail]:
    rows, _ = jobs.page(session, tenant, status=status, since=since, limit=SHOWN)
    return [detail(services, session, row) for row in rows]
