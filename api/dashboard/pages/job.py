"""One job: its story, phases, charts, layers, events, checkpoints and request; and what may be asked of it."""

import json
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import RedirectResponse

from api.dashboard import layers, recipes
from api.dashboard.actions import ALL, offers
from api.dashboard.events import line
from api.dashboard.render import go, page
from api.dashboard.track import legs
from api.dashboard.visitors import Signed, Submitted
from api.deps import CurrentServices
from api.etags import tagged
from api.routes.actions import ask
from api.routes.jobs import detail
from api.routes.reports import LARGEST_STEP
from api.schemas.reports import EventView
from core.errors import Code, ProblemError
from core.jobs import jobs, reports
from core.states import PHASE_BEGAN, TOPOLOGY_EVOLVED
from core.tables import Checkpoint

EVENTS = 50
POINTS = 600
"""Of a curve: as many as a wide screen tells apart."""
RUNS = 60
"""Of events of the topology, side by side in one picture."""
PHASES = 200

JobId = Annotated[str, Path()]
Step = Annotated[int, Query(ge=-1, le=LARGEST_STEP)]

router = APIRouter(prefix="/jobs/{job_id}")


@router.get("")
def show(request: Request, services: CurrentServices, visitor: Signed, job_id: JobId, refused: str = "") -> Response:
    """The page. `refused` names a wish that came too late."""
    with services.sessions.begin() as session:
        row = jobs.get(session, visitor.caller.tenant, job_id)
        job = detail(services, session, row)
        began = [EventView.of(event) for event in reports.events_of(session, job_id, PHASE_BEGAN, limit=PHASES)]
        latest = [EventView.of(event) for event in reports.latest_events(session, job_id, limit=EVENTS)]
        checkpoints = reports.checkpoints(session, job_id)
    return page(
        request,
        visitor,
        "job.html",
        job=job,
        legs=legs(job, began),
        events=[line(event) for event in latest],
        evolved=next((event.id for event in latest if event.type == TOPOLOGY_EVOLVED), None),
        changes=reports.CHANGES,
        checkpoints=checkpoints,
        layers=layers.grid(services.storage, checkpoints[-1]) if checkpoints else None,
        offers=offers(job) if visitor.may_write else [],
        refused=ALL[refused].label if refused in ALL else "",
        recipes=recipes.recipes(job, f"{request.url.scheme}://{request.url.netloc}"),
    )


@router.get("/series")
def series(
    request: Request,
    services: CurrentServices,
    visitor: Signed,
    job_id: JobId,
    *,
    after: Step = -1,
    length: int = 0,
    began: int = 0,
) -> Response:
    """The job's metrics by name, as means of spans of `length` steps: {"step": [...], "values": {"loss": [...], ...}}.

    Whoever has those up to the step `after` is given those behind it; and all, as "after" says, where spans are longer
    by now than `length`, or where another attempt than `began` has taken the first step: others follow it.
    """
    with services.sessions.begin() as session:
        job = jobs.get(session, visitor.caller.tenant, job_id)
        now, first = reports.span_length(session, job.id, POINTS), reports.first_attempt(session, job.id)
        after = after if (length, began) == (now, first) else -1
        rows = reports.downsample_metrics_by_span(session, job.id, after_step=after, length=now)
    names = sorted({name for row in rows for name in row.values})
    values = {name: [row.values.get(name) for row in rows] for name in names}
    steps = [row.step for row in rows]
    body = json.dumps({"after": after, "length": now, "began": first, "step": steps, "values": values})
    return tagged(body, request.headers.get("if-none-match", ""), "application/json")


@router.get("/topology")
def topology(request: Request, services: CurrentServices, visitor: Signed, job_id: JobId, of: str = "") -> Response:
    """The job's events of the topology, as `layers.life` puts them; `of` is what is counted by layer."""
    with services.sessions.begin() as session:
        job = jobs.get(session, visitor.caller.tenant, job_id)
        runs = reports.evolution(session, job.id, layer_count=of if of in reports.CHANGES else "grown", max_runs=RUNS)
    return tagged(json.dumps(layers.life(runs)), request.headers.get("if-none-match", ""), "application/json")


@router.get("/checkpoints/{checkpoint_id}/{name:path}")
def download(services: CurrentServices, visitor: Signed, job_id: JobId, checkpoint_id: str, name: str) -> Response:
    """To a fresh link of a checkpoint's file, so that the page need not change with every link."""
    with services.sessions.begin() as session:
        job = jobs.get(session, visitor.caller.tenant, job_id)
        found = [row for row in reports.checkpoints(session, job.id) if row.id == checkpoint_id and _has(row, name)]
    if not found:
        raise ProblemError(Code.NOT_FOUND, "The job has no such file.")
    link = services.storage.link(found[0].prefix + name, saved_as=name.rpartition("/")[2])
    return RedirectResponse(link, 303, headers={"Cache-Control": "no-store"})


@router.post("/{wish}")
def wish(services: CurrentServices, visitor: Signed, _: Submitted, job_id: JobId, wish: str) -> Response:
    """Ask something of the job, and show it again."""
    if wish not in ALL:
        raise ProblemError(Code.NOT_FOUND, "There is no such wish.")
    try:
        ask(services, visitor.caller, job_id, ALL[wish].wish, f"{wish}_job")
    except ProblemError as error:
        if error.code is not Code.CONFLICT:
            raise
        return go(f"/jobs/{job_id}?refused={wish}")
    return go(f"/jobs/{job_id}")


def _has(row: Checkpoint, name: str) -> bool:
    return any(file["name"] == name for file in row.files)
