"""The phases of a job's newest attempt: which are done, which one is running, and how long each has taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from api.dashboard import formatting
from api.schemas.jobs import JobView
from api.schemas.reports import EventView
from core.states import Phase, Status


class PhaseState(StrEnum):
    """State of a phase. The value is its CSS class."""

    DONE = "done"
    CURRENT = "current"
    PENDING = "pending"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """A phase, its state and its duration. If a phase ran several times, the durations are added up."""

    phase: Phase
    state: PhaseState
    seconds: float | None
    """Total duration of the finished runs of this phase, in seconds."""
    since: datetime | None
    """Start time of the run that has not finished, if any."""


def phase_progress(job: JobView, phase_events: Sequence[EventView]) -> list[PhaseProgress]:
    """Return all phases of the job, in the order in which a job runs them.

    `phase_events` are the job's `phase.began` events, oldest first.
    """
    events = [event for event in phase_events if event.attempt == job.attempt]
    ends = [event.created_at for event in events[1:]] + [job.finished_at or job.updated_at]
    seconds: dict[str, float] = {}
    for event, end in zip(events, ends, strict=False):
        if event is events[-1] and job.status is Status.RUNNING:
            continue
        name = event.data["phase"]
        seconds[name] = seconds.get(name, 0.0) + (end - event.created_at).total_seconds()
    last = events[-1] if events else None
    return [_progress_of(job, phase, seconds.get(phase), last) for phase in Phase if _is_included(job, phase)]


def _is_included(job: JobView, phase: Phase) -> bool:
    match phase:
        case Phase.WRITING:
            repair = job.spec["repair"]
            return bool(repair["method"] != "none" and repair.get("retain", "none") != "none")
        case Phase.PRUNING:
            return not formatting.is_gradual(job)
        case Phase.RECONSTRUCTING:
            return bool(job.spec["prune"]["reconstruct_epochs"] > 0)
        case Phase.TRAINING:
            return bool(job.spec["repair"]["method"] != "none")
        case _:
            return True


def _progress_of(job: JobView, phase: Phase, seconds: float | None, last: EventView | None) -> PhaseProgress:
    is_last = last is not None and last.data["phase"] == phase
    if job.status is Status.RUNNING and job.phase == phase:
        return PhaseProgress(phase, PhaseState.CURRENT, seconds, last.created_at if last and is_last else None)
    if job.status is Status.FAILED and is_last:
        return PhaseProgress(phase, PhaseState.FAILED, seconds, None)
    done = job.status is Status.SUCCEEDED or seconds is not None
    return PhaseProgress(phase, PhaseState.DONE if done else PhaseState.PENDING, seconds, None)
