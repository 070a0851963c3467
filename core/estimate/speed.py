"""How fast a kind of device runs the phases of a job, known from recent jobs on such devices or from a calibration.

The unit of work is one weight times one token. This module does not use the database.
"""

from enum import StrEnum
from statistics import median
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from core.estimate import calibration
from core.spec_parts import RepairMethod
from core.specs import Dtype, Flops, JobSpec
from core.states import Phase
from seft.config import OutputFormat
from seft.models.dimensions import Dimensions

LONGEST_SECONDS = 1e9
"""Longest remaining time of a job that is reported, about 32 years. Postgres cannot store times that are too late."""
SIMILAR = 4
"""The times per weight of two models are compared if their numbers of weights differ by at most this factor.

In a job of a much smaller model, the start of processes takes most of the time.
"""
STEP_PASSES = 3
"""Time of a training step, in forward passes over the same tokens."""
DENSE_BYTES = 2
"""Bytes of a weight in the dense model."""


class Source(StrEnum):
    """What an estimate of the time is based on. It is `calibration` if that gives the time of any phase."""

    EARLIER_JOBS = "earlier_jobs"
    CALIBRATION = "calibration"


class Task(NamedTuple):
    """A phase, and the method that it uses. Methods differ in speed."""

    phase: str
    method: str = ""


class Pace(NamedTuple):
    """Seconds per unit of work that a task of an earlier job took. The model of that job had `parameters` weights."""

    task: Task
    parameters: int
    seconds: float


class Speed(BaseModel):
    """What is known about the speed of one kind of device."""

    model_config = ConfigDict(frozen=True)

    paces: tuple[Pace, ...] = ()
    """The paces of recent jobs."""
    flops: Flops = {}
    """Operations per second that a worker measured for products of matrices. Empty if none has measured them."""

    def estimate(self, spec: JobSpec, model: Dimensions) -> tuple[dict[Phase, float], Source | None]:
        """Return the seconds of each phase of the job that can be estimated, and what they are based on.

        The time of a task comes from recent jobs with models of similar size. If there are none, it comes from the
        calibration.
        """
        calibrated = calibration.estimate_seconds(spec, model, self.flops)
        seconds: dict[Phase, float] = {}
        source = None
        for task, amount in count_work(spec, model.parameters, model.targets).items():
            phase = Phase(task.phase)
            if paces := self._paces(task, model.parameters):
                seconds[phase], source = amount * median(paces), source or Source.EARLIER_JOBS
            elif phase in calibrated:
                seconds[phase], source = calibrated[phase], Source.CALIBRATION
        return seconds, source

    def estimate_total(self, spec: JobSpec, model: Dimensions) -> tuple[float | None, Source | None]:
        """Return the seconds from the claim of a job to its end, and what they are based on.

        Both are None if the seconds of a phase are not known.
        """
        seconds, source = self.estimate(spec, model)
        complete = len(seconds) == len(count_work(spec, model.parameters, model.targets))
        return (sum(seconds.values()), source) if complete else (None, None)

    def _paces(self, task: Task, parameters: int) -> list[float]:
        similar = (parameters / SIMILAR, parameters * SIMILAR)
        paces = (pace for pace in self.paces if pace.task == task)
        return [pace.seconds for pace in paces if similar[0] <= pace.parameters <= similar[1]]


def count_work(spec: JobSpec, parameters: int, targets: int) -> dict[Task, float]:
    """Return the units of work per task. The model has `parameters` weights, `targets` of them in pruned layers.

    Raises ValueError if the data type of the request is `auto`.
    """
    prune, repair, evaluate = spec.prune, spec.repair, spec.evaluate
    allocation = spec.prune_config().resolved_allocation
    # Each format is written and verified. The dense model is always written, because the others are made from it.
    # The other formats are uploaded while they are written, and not in the phase `uploading`.
    written = len({OutputFormat.DENSE, *spec.output.formats})
    uploads = "" if OutputFormat.DENSE in spec.output.formats else "no weights"
    devices = f" on {spec.devices}" if spec.devices > 1 else ""
    # Only a split model uses the other devices outside of training: they gather each block for the first one.
    split = f"{devices} split" if spec.sharded else ""
    work: dict[Task, float] = {
        Task(Phase.LOADING, split): parameters,
        Task(Phase.EXPORTING): parameters * written,
        Task(Phase.UPLOADING, uploads): parameters,
    }
    judged = evaluate.windows * evaluate.tokens + calibration.judged_retained(spec)
    dtype = "" if spec.resolved_dtype is Dtype.FLOAT32 else f" {spec.dtype}"
    work[Task(Phase.EVALUATING, f"{dtype}{split}")] = float(parameters * len(spec.scored) * judged)
    text = calibration.calibration_tokens(spec)
    if spec.prunes:
        # A part of the time, solving, does not depend on the number of tokens: compare only jobs with the same number.
        method = f"{prune.method} {prune.refine} {allocation} {text}{dtype}{split}"
        work[Task(Phase.PRUNING, method)] = float(targets)
    if repair.retains:
        passes = calibration.writing_passes(spec)
        work[Task(Phase.WRITING, f"{repair.retain}{dtype}{split}")] = parameters * spec.retained_tokens * passes
    if spec.reconstructs:
        work[Task(Phase.RECONSTRUCTING, dtype)] = float(targets * text * prune.reconstruct_epochs)
    if repair.method is not RepairMethod.NONE:
        distills = bool(repair.distill_weight or repair.hidden_weight)
        method = f"{repair.method} {spec.trains_all} {prune.schedule} {distills}{dtype}{split or devices}"
        evaluated = calibration.evaluations_in_training(spec) * judged / STEP_PASSES
        work[Task(Phase.TRAINING, method)] = parameters * (repair.steps * repair.batch_tokens + evaluated)
    return work
