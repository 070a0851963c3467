"""The page of one job: summary, phases, charts, layers, events, checkpoints, pushes, request and actions."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from api.dashboard import formatting, layers
from api.dashboard.actions import ACTIONS, available_actions
from api.dashboard.events import event_line
from api.dashboard.render import go, go_after, page
from api.dashboard.snippets import request_snippets, run_commands
from api.dashboard.stages import stage_progress
from api.dashboard.visitors import Signed, Submitted, Visitor
from api.deps import CurrentServices, Services
from api.etags import tagged
from api.flaws import flaws_of_model
from api.query import require_known_parameters
from api.schemas.pushes import PushRequest, PushView
from api.schemas.reports import EventView
from api.schemas.shared import LARGEST_STEP
from api.usecases import jobs as usecases
from api.usecases import pushes
from core.errors import Code, ProblemError
from core.jobs import jobs, reports
from core.states import PHASE_BEGAN, TOPOLOGY_EVOLVED
from core.tables import Checkpoint, Dataset

EVENTS = 50
POINTS = 600
"""Maximum number of points in a curve. A wide screen cannot show more."""
RUNS = 60
"""Maximum number of columns in a topology map. If there are more updates, neighbouring ones are added up."""
PHASES = 200
PUSH_SECONDS = 3
"""Seconds between two requests for the list of pushes while a push runs or is about to be tried."""

JobId = Annotated[str, Path()]
NO_TARGET: Mapping[str, object] = {"repository": "", "revision": "main", "private": True}
"""Content of the form to push a result if the result was not pushed yet."""
NO_PROBLEMS: Mapping[str, str] = {}
KNOWN = [Depends(require_known_parameters)]
"""Dependency of the routes that programs can call. Pages ignore unknown parameters, because links can have any."""
Step = Annotated[int, Query(ge=-1, le=LARGEST_STEP)]

router = APIRouter(prefix="/jobs/{job_id}")


@router.get("")
def show(request: Request, services: CurrentServices, visitor: Signed, job_id: JobId, refused: str = "") -> Response:
    """Show the page of a job. `refused` is the name of an action that has just been rejected."""
    return _page(request, services, visitor, job_id, refused=refused)


def _page(
    request: Request,
    services: Services,
    visitor: Visitor,
    job_id: str,
    *,
    refused: str = "",
    target: Mapping[str, object] | None = None,
    problems: Mapping[str, str] = NO_PROBLEMS,
) -> Response:
    """Show the page of a job. `problems` says, by field, why the result cannot be pushed to `target`."""
    with services.sessions.begin() as session:
        row = jobs.get(session, visitor.caller.tenant, job_id)
        job = usecases.detail(services, session, row)
        began = [EventView.of(event) for event in reports.events_of(session, job_id, PHASE_BEGAN, limit=PHASES)]
        latest = [EventView.of(event) for event in reports.latest_events(session, job_id, limit=EVENTS + 1)]
        checkpoints = reports.checkpoints(session, job_id)
        used = {
            "Dataset": row.dataset_id,
            "Retained dataset": row.retain_dataset_id,
            "Evaluation dataset": row.evaluate_dataset_id,
        }
        datasets = {label: session.get_one(Dataset, dataset_id) for label, dataset_id in used.items() if dataset_id}
    pushed = pushes.list_all(services, visitor.caller, job_id)
    return page(
        request,
        visitor,
        "job.html",
        status=422 if problems else 200,
        job=job,
        datasets=datasets,
        run_seconds=formatting.run_seconds(row),
        stages=stage_progress(job, began),
        events=[event_line(event) for event in latest[:EVENTS]],
        older_events=len(latest) > EVENTS,
        last_evolution=next((event.id for event in latest if event.type == TOPOLOGY_EVOLVED), None),
        changes=reports.CHANGES,
        checkpoints=checkpoints,
        pushes=pushed,
        poll_pushes=_seconds_to_change(pushed),
        target=target or (pushed[0].model_dump() if pushed else NO_TARGET),
        problems=problems,
        commands={each.id: run_commands(job_id, each.files) for each in checkpoints},
        equally_sparse=layers.equally_sparse(job.spec),
        layers=layers.sparsity_table(services.storage, checkpoints[-1]) if checkpoints else None,
        actions=available_actions(job) if visitor.may_write else [],
        refused=ACTIONS[refused].label if refused in ACTIONS else "",
        snippets=request_snippets(job, f"{request.url.scheme}://{request.url.netloc}"),
    )


@router.get("/series", dependencies=KNOWN)
def series(
    request: Request,
    services: CurrentServices,
    visitor: Signed,
    job_id: JobId,
    *,
    after: Step = -1,
    length: int = 0,
    attempt: int = 0,
) -> Response:
    """Return the metrics of a job as averages over spans of steps: {"step": [...], "values": {"loss": [...], ...}}.

    Steps of a lost attempt that are not trained again yet are left out. A page that already has the values up to step
    `after` also sends the `length` of its spans in steps, and `attempt`, the number of the attempt that trained its
    last step. The response then has only the values after that step. If the length has changed or another attempt
    trains these steps, the response has all values, and its "after" is -1.
    """
    with services.sessions.begin() as session:
        job = jobs.get(session, visitor.caller.tenant, job_id)
        span = reports.span_length(session, job.id, POINTS)
        known = (span, reports.attempt_at(session, job.id, after)) if after <= job.step else None
        if known != (length, attempt):
            after, attempt = -1, 0
        rows = reports.downsample_metrics_by_span(session, job.id, after_step=after, last_step=job.step, length=span)
    if rows:
        attempt = rows[-1].attempt
    names = sorted({name for row in rows for name in row.values})
    values = {name: [row.values.get(name) for row in rows] for name in names}
    steps = [row.step for row in rows]
    body = json.dumps({"after": after, "length": span, "attempt": attempt, "step": steps, "values": values})
    return tagged(body, request.headers.get("if-none-match", ""), "application/json")


@router.get("/topology", dependencies=KNOWN)
def topology(request: Request, services: CurrentServices, visitor: Signed, job_id: JobId, of: str = "") -> Response:
    """Return the topology updates of a job. `of` names the count to return per layer, such as `grown`."""
    with services.sessions.begin() as session:
        job = jobs.get(session, visitor.caller.tenant, job_id)
        runs = reports.evolution(session, job.id, layer_count=of if of in reports.CHANGES else "grown", max_runs=RUNS)
    return tagged(
        json.dumps(layers.topology_history(runs)), request.headers.get("if-none-match", ""), "application/json"
    )


@router.get("/checkpoints/{checkpoint_id}/{name:path}")
def download(services: CurrentServices, visitor: Signed, job_id: JobId, checkpoint_id: str, name: str) -> Response:
    """Redirect to a new presigned link to a checkpoint's file.

    The page cannot contain such links, because they expire.
    """
    with services.sessions.begin() as session:
        job = jobs.get(session, visitor.caller.tenant, job_id)
        matches = [
            row for row in reports.checkpoints(session, job.id) if row.id == checkpoint_id and _has_file(row, name)
        ]
    if not matches:
        raise ProblemError(Code.NOT_FOUND, f"The job {job_id} has no file {name!r}. Its page lists its files.")
    link = services.storage.link(matches[0].prefix + name, saved_as=name.rpartition("/")[2])
    return RedirectResponse(link, 303, headers={"Cache-Control": "no-store"})


@router.post("/push")
def push(request: Request, services: CurrentServices, visitor: Signed, form: Submitted, job_id: JobId) -> Response:
    """Push the result into the repository that the form names, then show the job's page again."""
    texts = {name: str(form.get(name) or "").strip() for name in ("repository", "revision")}
    target = {
        **NO_TARGET,
        **{name: text for name, text in texts.items() if text},
        "private": form.get("public") is None,
    }
    try:
        pushes.push(services, visitor.caller, job_id, PushRequest.model_validate(target))
    except ValidationError as error:
        problems = {flaw.param: f"{flaw.rule}. {flaw.way_out}" for flaw in flaws_of_model(PushRequest, error)}
    except ProblemError as error:
        if error.code is Code.NOT_FOUND:
            raise
        wrong = next((flaw.param for flaw in error.flaws if flaw.param in texts), "repository")
        problems = {wrong: error.message}
    else:
        return go(f"/jobs/{job_id}")
    return _page(request, services, visitor, job_id, target=target, problems=problems)


@router.post("/delete")
def delete(services: CurrentServices, visitor: Signed, _: Submitted, job_id: JobId) -> Response:
    """Delete the job, then show the list of jobs."""
    usecases.delete(services, visitor.caller, job_id)
    return go("/jobs")


@router.post("/{action}")
def run_action(services: CurrentServices, visitor: Signed, _: Submitted, job_id: JobId, action: str) -> Response:
    """Run an action on the job, then show the job's page again."""
    return go_after(action, ACTIONS, f"/jobs/{job_id}", lambda: usecases.act(services, visitor.caller, job_id, action))


def _seconds_to_change(pushed: list[PushView]) -> int | None:
    """Return in how many seconds the page should ask for the pushes again. None if all have finished.

    The pause between two tries is up to 20 hours, in which nothing changes.
    """
    now = datetime.now(UTC)
    waits = [(push.next_try_at or now) - now for push in pushed if push.finished_at is None]
    return max(PUSH_SECONDS, math.ceil(min(waits).total_seconds())) if waits else None


def _has_file(row: Checkpoint, name: str) -> bool:
    return any(file["name"] == name for file in row.files)
