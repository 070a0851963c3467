"""The page of workers: which of them are busy, idle, or not responding."""

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from api.dashboard.render import page
from api.dashboard.visitors import Signed
from api.deps import CurrentServices, Services
from api.schemas.workers import WorkerView
from core import workers

router = APIRouter()


@router.get("/workers")
def show_workers(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """Show the list."""
    with services.sessions.begin() as session:
        views = list_workers(services, session, visitor.caller.tenant)
    return page(request, visitor, "workers.html", workers=views)


def list_workers(services: Services, session: Session, tenant: str) -> list[WorkerView]:
    """Return all workers that sent a heartbeat in the last 24 hours, those that are alive first.

    A job is named only if it belongs to the tenant.
    """
    rows = workers.list_with_jobs(session, services.settings.sweep_seconds)
    return sorted((WorkerView.of(*row, tenant) for row in rows), key=lambda worker: not worker.alive)
