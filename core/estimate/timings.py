"""Measure how long the phases of recent jobs took on each kind of device. Time in the queue is not included."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from core import workers
from core.estimate.speed import Pace, Speed, count_work
from core.specs import Dtype
from core.states import PHASE_BEGAN, STATUS_EVENT_PREFIX, Phase, Status, Transition
from core.stored_specs import read_stored
from core.tables import Job, JobEvent

LATEST = 50
"""Number of recent jobs whose times are used."""
CLAIMED, SUCCEEDED = (f"{STATUS_EVENT_PREFIX}{each}" for each in (Transition.CLAIMED, Transition.SUCCEEDED))


class _Counted(BaseModel):
    weights: Annotated[int, Field(gt=0, le=1 << 50)]


class _Measured(BaseModel):
    """What a training process has counted in its checkpoint, as far as it is used here."""

    model: _Counted
    linears: _Counted


def load(session: Session) -> dict[str, Speed]:
    """Return the speed of each kind of device, by its name.

    Counts only recent jobs that succeeded in one attempt and were not stopped by a request.
    """
    paces: dict[str, list[Pace]] = {}
    for job, events in _recent_jobs(session):
        for pace in _measure(job, events):
            paces.setdefault(str(events[0].data.get("kind") or ""), []).append(pace)
    flops = workers.find_flops(session)
    return {
        name: Speed(paces=tuple(paces.get(name, ())), flops=flops.get(name, {}))
        for name in {*paces, *flops}
        if name  # without a name, different devices would count as the same
    }


def _recent_jobs(session: Session) -> Iterator[tuple[Job, Sequence[JobEvent]]]:
    """Yield recent jobs that count, each with the events that say when its phases began and when it ended."""
    complete = (Job.status == Status.SUCCEEDED, Job.attempt == 1, ~Job.stopping)
    jobs = session.scalars(select(Job).where(*complete).order_by(Job.id.desc()).limit(LATEST)).all()
    types = (CLAIMED, PHASE_BEGAN, SUCCEEDED)
    query = select(JobEvent).where(JobEvent.job_id.in_([job.id for job in jobs]), JobEvent.type.in_(types))
    events: dict[str, list[JobEvent]] = {}
    for event in session.scalars(query.order_by(JobEvent.id)):
        events.setdefault(event.job_id, []).append(event)
    return ((job, events.get(job.id, ())) for job in jobs)  # a deleted job has no events


def _measure(job: Job, events: Sequence[JobEvent]) -> Iterator[Pace]:
    """Yield the seconds per unit of work of each task that a job has run, if they are known."""
    try:
        spec = read_stored(job.spec).resolve_dtype(bfloat16=job.dtype == Dtype.BFLOAT16)
        measured = _Measured.model_validate(job.measured)
    except ValidationError:  # written by another version of the software, or by a faulty training process
        return
    parameters = measured.model.weights
    work = {
        # `patience` may have ended the training after fewer steps.
        task: amount * (job.step / spec.repair.steps if task.phase == Phase.TRAINING else 1)
        for task, amount in count_work(spec, parameters, measured.linears.weights).items()
    }
    durations: dict[str, list[float]] = {}
    for event, following in pairwise(events):
        phase = event.data.get("phase", Phase.LOADING)
        durations.setdefault(phase, []).append((following.created_at - event.created_at).total_seconds())
    for task, amount in work.items():
        took = durations.get(task.phase, [])
        if amount and took and min(took) >= 0:  # it is negative if the clock of the database was set back
            yield Pace(task, parameters, sum(took) / amount)
