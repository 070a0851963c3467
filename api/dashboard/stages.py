"""The stages of a job in the order in which it runs them: which are done, which runs, and how long each has taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from api.schemas.jobs import JobView
from api.schemas.reports import EventView
from core.stages import Stage, stages_of
from core.states import Phase, Status
from core.stored_specs import read_if_valid


class StageState(StrEnum):
    """State of a stage. The value is its CSS class."""

    DONE = "done"
    CURRENT = "current"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StageProgress:
    """A stage, its state and its duration."""

    name: str
    """The phase that the API reports for this stage. For an evaluation, also the model that is evaluated."""
    state: StageState
    seconds: float | None
    """Duration of the newest finished run of this stage, in seconds."""
    since: datetime | None
    """Start time of the run that has not finished, if any."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of a stage. `end` is None if the run has not ended, or if its attempt ended during the run."""

    stage: Stage
    start: datetime
    end: datetime | None


def stage_progress(job: JobView, phase_events: Sequence[EventView]) -> list[StageProgress]:
    """Return all stages of the job, in the order in which it runs them.

    `phase_events` are the job's `phase.began` events, oldest first. An attempt that resumes from a saved state does not
    repeat the stages before it. They are done, and their durations are those of earlier attempts.
    """
    spec = read_if_valid(job.spec)
    stages = stages_of(spec) if spec else tuple(Stage)
    runs = list(_runs(job, stages, phase_events))
    seconds = {run.stage: (run.end - run.start).total_seconds() for run in runs if run.end}
    newest = runs[-1] if runs and phase_events[-1].attempt == job.attempt else None
    place = len(stages) if job.status is Status.SUCCEEDED else stages.index(newest.stage) if newest else 0
    shown = []
    for number, stage in enumerate(stages):
        name = f"{stage.phase} {stage}" if stage.phase is Phase.EVALUATING else str(stage.phase)
        state = StageState.DONE if number < place else StageState.PENDING
        if newest and number == place:
            state = _state_of_newest(job)
        since = newest.start if newest and state is StageState.CURRENT else None
        ended = state in {StageState.DONE, StageState.FAILED}
        shown.append(StageProgress(name, state, seconds.get(stage) if ended else None, since))
    return shown


def _runs(job: JobView, stages: Sequence[Stage], events: Sequence[EventView]) -> Iterator[_Run]:
    """Yield the runs of stages that the events report. In an attempt, stages run in the order of `stages`."""
    place, attempt = 0, 0
    for number, event in enumerate(events):
        if event.attempt != attempt:
            place, attempt = 0, event.attempt
        following = events[number + 1] if number + 1 < len(events) else None
        found = next((at for at in range(place, len(stages)) if stages[at].phase == event.data["phase"]), None)
        if found is None:
            continue
        place = found
        end = following.created_at if following and following.attempt == attempt else None
        if following is None and job.status.final:
            end = job.finished_at
        yield _Run(stages[place], event.created_at, end)


def _state_of_newest(job: JobView) -> StageState:
    """Return the state of the stage that the newest attempt began last."""
    if job.status is Status.RUNNING:
        return StageState.CURRENT
    return StageState.FAILED if job.status is Status.FAILED else StageState.PENDING
