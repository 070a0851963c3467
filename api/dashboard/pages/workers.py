"""The page of workers: which of them are busy, idle, or not responding."""

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
class WorkerState:
    """A worker, and whether it is late with its heartbeat."""

    worker: WorkerView
    unresponsive: bool


@router.get("/workers")
def list_workers(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """Show the list."""
    with services.sessions.begin() as session:
        states = list_with_state(services, session, visitor.caller.tenant)
    return page(request, visitor, "workers.html", workers=states)


def list_with_state(services: Services, session: Session, tenant: str) -> list[WorkerState]:
    """Return all workers that sent a heartbeat in the last 24 hours.

    A job is named only if it belongs to the tenant.
    """
    views = [WorkerView.of(worker, job, tenant) for worker, job in workers.list_with_jobs(session)]
    overdue = datetime.now(UTC) - timedelta(seconds=workers.MAX_MISSED_SWEEPS * services.settings.sweep_seconds)
    return [WorkerState(view, view.seen_at < overdue) for view in views]
