"""Whether a job fits a worker, and what to change of it so that it does."""

from dataclasses import dataclass
from typing import Any

from core.capability import CPU, Capability
from core.estimate.dimensions import Dimensions
from core.estimate.footprint import Bytes, memory_by_phase
from core.specs import JobSpec
from core.states import Phase
from core.tables import Worker

ROOM = 0.9
"""The share of a memory that a job may be expected to fill: estimates are not exact, and others use the machine."""
CONTEXT_BYTES = 600_000_000
"""What CUDA keeps of a device for each process."""
LEAST_TOKENS, LEAST_SAMPLES = 128, 16
"""Windows and calibration are not made smaller than this: what comes out would be worth little."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The fullest phase of a job on a worker, and what its device has."""

    phase: Phase
    needed_bytes: int
    memory_bytes: int

    @property
    def met(self) -> bool:
        """Whether it fits."""
        return self.needed_bytes <= ROOM * self.memory_bytes


def fit(model: Dimensions, spec: JobSpec, has: Capability | Worker) -> Fit:
    """What decides whether the job fits. The host of a device that is not the processor is not looked at."""
    needed = {phase: _needed(held, has) for phase, held in memory_by_phase(model, spec).items()}
    phase = max(needed, key=lambda each: needed[each])
    return Fit(phase, needed[phase], has.memory)


def suggest_change(model: Dimensions, spec: JobSpec, has: Capability | Worker) -> dict[str, Any] | None:
    """The fields, as `POST /jobs/{job_id}/clone` takes them, with which the job fits; None where nothing here helps."""
    fitting: JobSpec | None = spec
    while fitting and not (found := fit(model, fitting, has)).met:
        fitting = _smaller(fitting, found.phase)
    return None if fitting is None else _differences(spec.model_dump(mode="json"), fitting.model_dump(mode="json"))


def _needed(held: Bytes, has: Capability | Worker) -> int:
    return held.together if has.device == CPU else held.device + CONTEXT_BYTES


def _smaller(spec: JobSpec, phase: Phase) -> JobSpec | None:
    """A job that holds less in a phase, changed in what matters least for its result; None where there is none."""
    repair, calibration = spec.repair, spec.prune.calibration
    match phase:
        case Phase.TRAINING if repair.micro_batch > 1:
            return _with(spec, "repair", micro_batch=repair.micro_batch // 2)
        case Phase.TRAINING if repair.sequence_tokens >= 2 * LEAST_TOKENS and repair.sequence_tokens % 2 == 0:
            return _with(spec, "repair", sequence_tokens=repair.sequence_tokens // 2)
        case Phase.PRUNING | Phase.RECONSTRUCTING if calibration.samples >= 2 * LEAST_SAMPLES:
            fewer = calibration.model_copy(update={"samples": calibration.samples // 2})
            return _with(spec, "prune", calibration=fewer)
        case Phase.RECONSTRUCTING:
            return _with(spec, "prune", reconstruct_epochs=0)
        case Phase.EVALUATING if spec.evaluate.tokens >= 2 * LEAST_TOKENS:
            return _with(spec, "evaluate", tokens=spec.evaluate.tokens // 2)
        case _:
            return None


def _with(spec: JobSpec, part: str, **values: Any) -> JobSpec:
    return spec.model_copy(update={part: getattr(spec, part).model_copy(update=values)})


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A merge patch from one to the other."""
    return {
        name: _differences(before[name], value) if isinstance(value, dict) else value
        for name, value in after.items()
        if value != before[name]
    }
