"""How long jobs take: each phase's time for its work, as it was for jobs that lately ran through on a kind of worker.

Work is a count of weights times tokens. It says nothing of seconds by itself, and what a job waits is not in it.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.specs import JobSpec, RepairMethod
from core.states import PHASE_BEGAN, Phase, Status, Transition
from core.tables import Job, JobEvent

LATEST = 50
"""Jobs that are looked at."""
CLAIMED, SUCCEEDED = f"job.{Transition.CLAIMED}", f"job.{Transition.SUCCEEDED}"


class Task(NamedTuple):
    """A phase, and by which method it is done: other methods take other times."""

    phase: str
    method: str = ""


Timings = Mapping[tuple[str, Task], float]
"""Seconds for a unit of work, by kind of worker and task."""


def timings(session: Session) -> Timings:
    """The median of the latest jobs that succeeded in one attempt and were not told to stop."""
    ran = (Job.status == Status.SUCCEEDED, Job.attempt == 1, ~Job.stopping)
    jobs = session.scalars(select(Job).where(*ran).order_by(Job.id.desc()).limit(LATEST)).all()
    kinds = (CLAIMED, PHASE_BEGAN, SUCCEEDED)
    told = select(JobEvent).where(JobEvent.job_id.in_([job.id for job in jobs]), JobEvent.type.in_(kinds))
    events: dict[str, list[JobEvent]] = {}
    for event in session.scalars(told.order_by(JobEvent.id)):
        events.setdefault(event.job_id, []).append(event)
    seen: dict[tuple[str, Task], list[float]] = {}
    for job in jobs:
        for key, pace in _of_job(job, events[job.id]):
            seen.setdefault(key, []).append(pace)
    return {key: median(found) for key, found in seen.items()}


def seconds(paces: Timings, kind: str, work: Mapping[Task, float]) -> float | None:
    """From the claim to the end, on such a worker; None where a part of the work was never done there."""
    parts = [(paces.get((kind, task)), amount) for task, amount in work.items()]
    return None if any(pace is None for pace, _ in parts) else sum(pace * amount for pace, amount in parts if pace)


def work(spec: JobSpec, parameters: int, targets: int) -> dict[Task, float]:
    """What there is to do for a model of so many weights, of which so many are made sparse."""
    prune, repair, evaluate = spec.prune, spec.repair, spec.evaluate
    calibration = float(targets * prune.calibration.samples * prune.calibration.tokens)
    judgements = 3 if repair.method is not RepairMethod.NONE else 2
    done: dict[Task, float] = {Task(phase): parameters for phase in (Phase.LOADING, Phase.EXPORTING, Phase.UPLOADING)}
    done[Task(Phase.EVALUATING)] = float(parameters * judgements * evaluate.windows * evaluate.tokens)
    done[Task(Phase.PRUNING, f"{prune.method} {prune.refine} {spec.allocation}")] = calibration
    if prune.reconstruct_epochs:
        done[Task(Phase.RECONSTRUCTING)] = calibration * prune.reconstruct_epochs
    if repair.method is not RepairMethod.NONE:
        taught = bool(repair.distill_weight or repair.hidden_weight)
        done[Task(Phase.TRAINING, f"{repair.method} {taught}")] = float(parameters * repair.steps * repair.batch_tokens)
    return done


def _of_job(job: Job, events: list[JobEvent]) -> Iterator[tuple[tuple[str, Task], float]]:
    try:
        spec, counted = JobSpec.model_validate(job.spec), job.measured or {}
        asked = work(spec, counted["model"]["weights"], counted["linears"]["weights"])
    except (ValidationError, KeyError):  # other software's
        return
    kind = events[0].data.get("kind")
    took: dict[str, float] = {}
    for event, following in pairwise(events):
        phase = event.data.get("phase", Phase.LOADING)
        took[phase] = took.get(phase, 0.0) + (following.created_at - event.created_at).total_seconds()
    for task, amount in asked.items():
        if kind and task.phase in took:
            yield (kind, task), took[task.phase] / amount
