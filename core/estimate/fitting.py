"""Decide whether a job fits a worker's device memory, and suggest changes to the job that make it fit."""

from dataclasses import dataclass
from typing import Any

from core.capability import CPU, Capability
from core.estimate.dimensions import Dimensions
from core.estimate.footprint import Footprint, memory_by_phase
from core.specs import JobSpec
from core.states import Phase
from core.tables import Worker

USABLE_FRACTION = 0.9
"""Fraction of the device memory that a job may need. The rest covers estimation errors and other processes."""
CONTEXT_BYTES = 600_000_000
"""Device memory that CUDA reserves per process."""
MIN_TOKENS, MIN_SAMPLES = 128, 16
"""Smallest window and smallest calibration set that are suggested. Below these, results would be poor."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The phase of a job that needs the most memory, what it needs, and what the worker's device has."""

    phase: Phase
    needed_bytes: int
    memory_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the job fits."""
        return self.needed_bytes <= USABLE_FRACTION * self.memory_bytes


def fit(model: Dimensions, spec: JobSpec, worker: Capability | Worker) -> Fit:
    """Return how a job fits a worker. On a worker with an accelerator, the host's memory is not checked."""
    needed = {phase: _needed(need, worker) for phase, need in memory_by_phase(model, spec).items()}
    phase = max(needed, key=lambda each: needed[each])
    return Fit(phase, needed[phase], worker.memory)


def suggest_change(model: Dimensions, spec: JobSpec, worker: Capability | Worker) -> dict[str, Any] | None:
    """Return the fields to change so that the job fits, in the format of `POST /jobs/{job_id}/clone`.

    Returns None if no change of these fields is enough.
    """
    changed: JobSpec | None = spec
    while changed and not (result := fit(model, changed, worker)).fits:
        changed = _shrink(changed, result.phase)
    return None if changed is None else _merge_patch(spec.model_dump(mode="json"), changed.model_dump(mode="json"))


def _needed(need: Footprint, worker: Capability | Worker) -> int:
    return need.combined if worker.device == CPU else need.device + CONTEXT_BYTES


def _shrink(spec: JobSpec, phase: Phase) -> JobSpec | None:
    """Return a job that needs less memory in a phase, with the change that affects its result the least.

    Returns None if nothing is left to shrink.
    """
    repair, calibration = spec.repair, spec.prune.calibration
    match phase:
        case Phase.TRAINING if repair.micro_batch > 1:
            return _with(spec, "repair", micro_batch=repair.micro_batch // 2)
        case Phase.TRAINING if repair.sequence_tokens >= 2 * MIN_TOKENS and repair.sequence_tokens % 2 == 0:
            return _with(spec, "repair", sequence_tokens=repair.sequence_tokens // 2)
        case Phase.PRUNING | Phase.RECONSTRUCTING if calibration.samples >= 2 * MIN_SAMPLES:
            fewer = calibration.model_copy(update={"samples": calibration.samples // 2})
            return _with(spec, "prune", calibration=fewer)
        case Phase.RECONSTRUCTING:
            return _with(spec, "prune", reconstruct_epochs=0)
        case Phase.EVALUATING if spec.evaluate.tokens >= 2 * MIN_TOKENS:
            return _with(spec, "evaluate", tokens=spec.evaluate.tokens // 2)
        case _:
            return None


def _with(spec: JobSpec, part: str, **values: Any) -> JobSpec:
    return spec.model_copy(update={part: getattr(spec, part).model_copy(update=values)})


def _merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the merge patch (RFC 7396) that turns `before` into `after`."""
    return {
        name: _merge_patch(before[name], value) if isinstance(value, dict) else value
        for name, value in after.items()
        if value != before[name]
    }
