"""The overview: failed jobs first, then running, waiting and finished jobs, workers and storage."""

from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response

from api.dashboard.formatting import IN_TURN
from api.dashboard.pages.workers import list_workers
from api.dashboard.render import page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices
from api.schemas.jobs import JobDetail
from api.usecases.jobs import detail
from core.jobs import fairness, jobs
from core.jobs.forecast import Forecast
from core.states import Status

SHOWN = 6
"""Maximum number of jobs in each list."""
FAILED_WITHIN = timedelta(days=7)
"""Time for which a failed job is shown here."""

router = APIRouter()


@router.get("/")
def overview(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """Show the overview."""
    tenant = visitor.caller.tenant
    with services.sessions.begin() as session:
        since = datetime.now(UTC) - FAILED_WITHIN
        running, paused, queued, succeeded, failed = (
            [detail(services, session, row) for row in rows]
            for rows in (
                jobs.page(session, tenant, status=Status.RUNNING, limit=SHOWN)[0],
                jobs.page(session, tenant, status=Status.PAUSED, limit=SHOWN)[0],
                jobs.first_in_queue(session, tenant, limit=SHOWN),
                jobs.last_ended(session, tenant, Status.SUCCEEDED, limit=SHOWN),
                jobs.last_ended(session, tenant, Status.FAILED, limit=SHOWN, since=since),
            )
        )
        counts = jobs.counts(session, tenant)
        worker_views = list_workers(services, session, tenant)
        forecast = Forecast.now(session, services.settings.sweep_seconds)
        stored = fairness.stored_bytes(session, tenant)
    waiting = queued + paused
    return page(
        request,
        visitor,
        "overview.html",
        running=running,
        waiting=waiting,
        starts_in={job.id: _starts_in(forecast, job) for job in waiting},
        stored=stored,
        limit=services.settings.tenant_bytes,
        succeeded=succeeded,
        failed=failed,
        counts=counts,
        workers=worker_views,
        count_limit=jobs.MAX_POSITION,
    )


def _starts_in(forecast: Forecast, job: JobDetail) -> float | None:
    """Return the estimated seconds until the job starts, or None if there is no estimate."""
    in_turn = job.reason is not None and job.reason.code == IN_TURN
    return forecast.start(job.queue_position) if job.queue_position and in_turn else None
