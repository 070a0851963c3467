"""The list of workers, and metrics of the whole service for Prometheus."""

from fastapi import APIRouter, Response

from api.deps import Auth, CurrentServices, Scraper
from api.schemas.workers import WorkerList, WorkerView
from core import prometheus, workers

router = APIRouter(tags=["operations"])


@router.get("/workers")
def list_workers(services: CurrentServices, caller: Auth) -> WorkerList:
    """List all workers of the last day: host, device, versions, job, last heartbeat, and whether they are alive."""
    with services.sessions.begin() as session:
        rows = workers.list_with_jobs(session, services.settings.sweep_seconds)
    return WorkerList(data=[WorkerView.of(*row, caller.tenant) for row in rows])


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Metrics as text.", "content": {prometheus.MEDIA_TYPE: {"example": prometheus.EXAMPLE}}}
    },
)
def get_metrics(services: CurrentServices, _caller: Scraper) -> Response:
    """Get metrics of the whole service, for the operator, in the text format of Prometheus.

    Needs a key of scope `metrics`, which only the operator can create. There are no metrics of single jobs.
    """
    with services.sessions.begin() as session:
        text = prometheus.render(session, services.settings.lease_seconds)
    return Response(text, media_type=prometheus.MEDIA_TYPE)
