"""The workers: which work, which are idle, which have fallen silent."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api.dashboard.render import page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices, Services
from api.schemas.workers import WorkerView
from core import workers

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker, and whether it has fallen silent."""

    worker: WorkerView
    silent: bool


@router.get("/workers")
def list_workers(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """The page."""
    with services.sessions.begin() as session:
        found = all_seen(services, session, visitor.caller.tenant)
    return page(request, visitor, "workers.html", workers=found)


def all_seen(services: Services, session: Session, tenant: str) -> list[Seen]:
    """Every worker that was there within a day; only the tenant's own jobs are named."""
    views = [WorkerView.of(worker, job, tenant) for worker, job in workers.list_with_jobs(session)]
    late = datetime.now(UTC) - timedelta(seconds=workers.MAX_MISSED_SWEEPS * services.settings.sweep_seconds)
    return [Seen(view, view.seen_at < late) for view in views]
