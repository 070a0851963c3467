"""Estimate how long a job takes, from the time that recent jobs took per phase on the same kind of worker.

The unit of work is one weight times one token. Time in the queue is not included.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.spec_parts import RepairMethod
from core.specs import JobSpec
from core.states import PHASE_BEGAN, Phase, Status, Transition
from core.tables import Job, JobEvent

LATEST = 50
"""Number of recent jobs whose times are used."""
CLAIMED, SUCCEEDED = f"job.{Transition.CLAIMED}", f"job.{Transition.SUCCEEDED}"


class Task(NamedTuple):
    """A phase, and the method that it uses. Methods differ in speed."""

    phase: str
    method: str = ""


Timings = Mapping[tuple[str, Task], float]
"""Type: kind of worker -> task -> seconds per unit of work."""


def load(session: Session) -> Timings:
    """Return the median timings of recent jobs.

    Only jobs count that succeeded in one attempt and were not stopped early.
    """
    complete = (Job.status == Status.SUCCEEDED, Job.attempt == 1, ~Job.stopping)
    jobs = session.scalars(select(Job).where(*complete).order_by(Job.id.desc()).limit(LATEST)).all()
    types = (CLAIMED, PHASE_BEGAN, SUCCEEDED)
    query = select(JobEvent).where(JobEvent.job_id.in_([job.id for job in jobs]), JobEvent.type.in_(types))
    events: dict[str, list[JobEvent]] = {}
    for event in session.scalars(query.order_by(JobEvent.id)):
        events.setdefault(event.job_id, []).append(event)
    samples: dict[tuple[str, Task], list[float]] = {}
    for job in jobs:
        for key, pace in _measure(job, events[job.id]):
            samples.setdefault(key, []).append(pace)
    return {key: median(values) for key, values in samples.items()}


def estimate_seconds(timings: Timings, kind: str, work: Mapping[Task, float]) -> float | None:
    """Return the estimated seconds from the claim of a job to its end, on a worker of this kind.

    Returns None if one of its tasks has never run on such a worker.
    """
    parts = [(timings.get((kind, task)), amount) for task, amount in work.items()]
    return None if any(pace is None for pace, _ in parts) else sum(pace * amount for pace, amount in parts if pace)


def count_work(spec: JobSpec, parameters: int, targets: int) -> dict[Task, float]:
    """Return the units of work per task. The model has `parameters` weights, `targets` of them in pruned layers."""
    prune, repair, evaluate = spec.prune, spec.repair, spec.evaluate
    calibration = float(targets * prune.calibration.samples * prune.calibration.tokens)
    work: dict[Task, float] = {Task(phase): parameters for phase in (Phase.LOADING, Phase.EXPORTING, Phase.UPLOADING)}
    judged = evaluate.windows * evaluate.tokens + spec.retained_tokens // 8
    work[Task(Phase.EVALUATING)] = float(parameters * len(spec.scored) * judged)
    if "pruned" in spec.scored:
        work[Task(Phase.PRUNING, f"{prune.method} {prune.refine} {spec.allocation}")] = calibration
    if repair.retains:
        work[Task(Phase.WRITING, repair.retain)] = float(parameters * spec.retained_tokens)
    if prune.reconstruct_epochs:
        work[Task(Phase.RECONSTRUCTING)] = calibration * prune.reconstruct_epochs
    if repair.method is not RepairMethod.NONE:
        distills = bool(repair.distill_weight or repair.hidden_weight)
        method = f"{repair.method} {spec.trains_all} {prune.schedule} {distills}"
        work[Task(Phase.TRAINING, method)] = float(parameters * repair.steps * repair.batch_tokens)
    return work


def _measure(job: Job, events: list[JobEvent]) -> Iterator[tuple[tuple[str, Task], float]]:
    """Yield the seconds per unit of work of each task that a job has run."""
    try:
        spec, measured = JobSpec.model_validate(job.spec), job.measured or {}
        work = count_work(spec, measured["model"]["weights"], measured["linears"]["weights"])
    except (ValidationError, KeyError):  # written by another version of the software
        return
    kind = events[0].data.get("kind")
    durations: dict[str, float] = {}
    for event, following in pairwise(events):
        phase = event.data.get("phase", Phase.LOADING)
        durations[phase] = durations.get(phase, 0.0) + (following.created_at - event.created_at).total_seconds()
    for task, amount in work.items():
        if kind and task.phase in durations:
            yield (kind, task), durations[task.phase] / amount
