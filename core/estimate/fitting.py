"""Decide whether a job fits into a worker's device memory. If not, suggest changes to the job that make it fit."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from core.capability import CPU, Capability
from core.estimate.footprint import Footprint, memory_by_phase
from core.estimate.training_memory import always_sums_gradients, training_parts
from core.specs import Dtype, JobSpec
from core.states import Phase
from core.tables import Worker
from seft.config import Retain
from seft.errors import ConfigError
from seft.models.dimensions import Dimensions

USABLE_FRACTION = 0.9
"""Fraction of the device memory that a job can use. The rest is kept for estimation errors and other processes."""
CONTEXT_BYTES = 600_000_000
"""Bytes of device memory that CUDA reserves per process."""
MIN_TOKENS, MIN_SAMPLES = 128, 16
"""Smallest suggested number of tokens per sequence, and of calibration sequences. Smaller numbers give poor results."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The phase of a job that needs the most memory, the bytes that it needs, and the bytes that the worker has.

    `enough_devices` is true if the worker has the number of devices that the job asks for.
    """

    phase: Phase
    needed_bytes: int
    memory_bytes: int
    enough_devices: bool = True

    @property
    def fits(self) -> bool:
        """Whether the worker has the memory and the devices for the job."""
        return self.enough_devices and self.needed_bytes <= USABLE_FRACTION * self.memory_bytes


def fit(model: Dimensions, spec: JobSpec, worker: Capability | Worker) -> Fit:
    """Compare the memory that a job needs with the memory of a worker.

    If the worker has an accelerator, the memory of its host is not checked. Raises ValueError if the data type of the
    request is `auto`.
    """
    needed = {phase: _needed(need, worker) for phase, need in memory_by_phase(model, spec).items()}
    phase = max(needed, key=lambda each: needed[each])
    return Fit(phase, needed[phase], worker.memory, spec.devices <= worker.devices)


def suggest_change(model: Dimensions, spec: JobSpec, worker: Capability | Worker) -> dict[str, Any] | None:
    """Return the fields to change so that the job fits, in the format of `POST /jobs/{job_id}/clone`.

    Returns None if the job cannot be made to fit by such changes, or if the changed request would not be valid.
    """
    changed: JobSpec | None = spec
    try:
        while changed and not (result := fit(model, changed, worker)).fits:
            if not result.enough_devices:
                fewer = max(count for count in range(1, worker.devices + 1) if spec.devices % count == 0)
                changed = changed.model_copy(update={"devices": fewer, "sharded": changed.sharded and fewer > 1})
            elif split := _sharded(changed):
                changed = split
            elif changed.dtype is Dtype.FLOAT32:
                changed = changed.model_copy(update={"dtype": Dtype.BFLOAT16})
            else:
                training = result.phase is Phase.TRAINING
                limit = training_parts(model, changed).limit if training else result.phase
                changed = _shrink(model, changed, limit) or _without_retained(changed, limit)
        if changed is None:
            return None
        fields = changed.model_dump(mode="json")
        type(spec).model_validate(fields)
    except (ConfigError, ValidationError):  # a smaller value contradicts another setting of the request
        return None
    return _merge_patch(spec.model_dump(mode="json"), fields)


def _needed(need: Footprint, worker: Capability | Worker) -> int:
    return need.combined if worker.device == CPU else need.device + CONTEXT_BYTES


def _sharded(spec: JobSpec) -> JobSpec | None:
    """Return the job with its model split over its devices. Returns None if it is split already or cannot be split."""
    try:
        return None if spec.sharded else type(spec).model_validate({**spec.model_dump(mode="json"), "sharded": True})
    except ValidationError:
        return None


def _shrink(model: Dimensions, spec: JobSpec, phase: Phase) -> JobSpec | None:
    """Return the job with one change that reduces the memory of a phase and affects the result as little as possible.

    Returns None if no further change is possible.
    """
    calibration = spec.prune.calibration
    match phase:
        case Phase.TRAINING:
            return _shrink_training(model, spec)
        case Phase.PRUNING | Phase.RECONSTRUCTING if calibration.samples >= 2 * MIN_SAMPLES:
            fewer = calibration.model_copy(update={"samples": calibration.samples // 2})
            return _with(spec, "prune", calibration=fewer)
        case Phase.RECONSTRUCTING:
            return _with(spec, "prune", reconstruct_epochs=0)
        case Phase.EVALUATING if spec.evaluate.tokens >= 2 * MIN_TOKENS:
            return _with(spec, "evaluate", tokens=spec.evaluate.tokens // 2)
        case Phase.EXPORTING:
            return _without_gguf(spec)
        case _:
            return None


def _shrink_training(model: Dimensions, spec: JobSpec) -> JobSpec | None:
    repair = spec.repair
    # The sum of the gradients of several micro-batches needs memory. A step of one micro-batch has no such sum.
    whole = spec.trains_all and not always_sums_gradients(model, spec)
    if not repair.activation_checkpointing and (whole or repair.micro_batch == spec.devices):
        return _with(spec, "repair", activation_checkpointing=True)
    windows = repair.batch_tokens // repair.sequence_tokens
    if whole and windows > spec.devices:
        windows = repair.micro_batch if windows > repair.micro_batch else _half(windows, spec.devices)
        return _with(spec, "repair", batch_tokens=windows * repair.sequence_tokens, micro_batch=windows)
    if repair.micro_batch > spec.devices:
        return _with(spec, "repair", micro_batch=_half(repair.micro_batch, spec.devices))
    if repair.sequence_tokens >= 2 * MIN_TOKENS and repair.sequence_tokens % 2 == 0:
        return _with(spec, "repair", sequence_tokens=repair.sequence_tokens // 2)
    return None


def _without_retained(spec: JobSpec, phase: Phase) -> JobSpec | None:
    """Return the job without retained text, which is in memory in all phases but loading. None if it retains none."""
    retains = spec.repair.retains and phase is not Phase.LOADING
    return _with(spec, "repair", retain=Retain.NONE, retain_dataset=None) if retains else None


def _without_gguf(spec: JobSpec) -> JobSpec | None:
    """Return the job without its GGUF formats. Returns None if it has none, or no other format."""
    others = tuple(each for each in spec.output.formats if not each.is_gguf)
    return _with(spec, "output", formats=others) if 0 < len(others) < len(spec.output.formats) else None


def _half(windows: int, devices: int) -> int:
    """Return about half of a number of windows, such that each device gets the same number of windows."""
    return max(1, windows // devices // 2) * devices


def _with(spec: JobSpec, part: str, **values: Any) -> JobSpec:
    return spec.model_copy(update={part: getattr(spec, part).model_copy(update=values)})


def _merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7396) that turns `before` into `after`."""
    return {
        name: _merge_patch(before[name], value) if isinstance(value, dict) else value
        for name, value in after.items()
        if value != before[name]
    }
