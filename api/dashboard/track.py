"""The phases of a job's newest attempt: which are over, which runs, how long each took."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from api.schemas.jobs import JobView
from api.schemas.reports import EventView
from core.states import Phase, Status


class Standing(StrEnum):
    """How far a phase is."""

    DONE = "done"
    NOW = "now"
    AHEAD = "ahead"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Leg:
    """A phase, all its turns together. `seconds` are those of the turns that are over; `since` is when it began now."""

    phase: Phase
    standing: Standing
    seconds: float | None
    since: datetime | None


def legs(job: JobView, began: Sequence[EventView]) -> list[Leg]:
    """A leg for each phase, in the order of a whole run; `began` are the job's events of that type."""
    mine = [event for event in began if event.attempt == job.attempt]
    ends = [event.created_at for event in mine[1:]] + [job.finished_at or job.updated_at]
    spent: dict[str, float] = {}
    for event, end in zip(mine, ends, strict=False):
        if event is mine[-1] and job.status is Status.RUNNING:
            continue
        name = event.data["phase"]
        spent[name] = spent.get(name, 0.0) + (end - event.created_at).total_seconds()
    last = mine[-1] if mine else None
    return [_leg(job, phase, spent.get(phase), last) for phase in Phase if _asked(job, phase)]


def _asked(job: JobView, phase: Phase) -> bool:
    match phase:
        case Phase.RECONSTRUCTING:
            return bool(job.spec["prune"]["reconstruct_epochs"] > 0)
        case Phase.TRAINING:
            return bool(job.spec["repair"]["method"] != "none")
        case _:
            return True


def _leg(job: JobView, phase: Phase, seconds: float | None, last: EventView | None) -> Leg:
    latest = last is not None and last.data["phase"] == phase
    if job.status is Status.RUNNING and job.phase == phase:
        return Leg(phase, Standing.NOW, seconds, last.created_at if last and latest else None)
    if job.status is Status.FAILED and latest:
        return Leg(phase, Standing.BROKEN, seconds, None)
    done = job.status is Status.SUCCEEDED or seconds is not None
    return Leg(phase, Standing.DONE if done else Standing.AHEAD, seconds, None)
