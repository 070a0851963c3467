"""Estimate the peak memory of a job in each phase. The formulas follow what the training code keeps in memory.

They count weights and activations in the data type of the job, and `PROCESS_BYTES` for the process. If the device is
the CPU, device and host have the same memory. `tests/worker/test_footprint.py` compares the estimates with real runs.
"""

from dataclasses import dataclass, replace

from core.estimate.activations import FLOAT, forward_bytes, logits_bytes, saved_bytes, weights_bytes
from core.estimate.pruning_memory import pruning_bytes, state_bytes
from core.estimate.training_memory import training_parts
from core.spec_parts import RepairMethod
from core.specs import JobSpec
from core.states import Phase
from seft.models.dimensions import Dimensions

HALF = 2
"""Bytes of a weight in the checkpoint."""
PROCESS_BYTES = 410_000_000
"""Bytes of a process that has loaded torch, transformers, a tokenizer and the text of the dataset.

They include 40 MB for a copy of the process, which waits to verify the checkpoint and shares most of its memory. With a
torch built for CUDA, the process needs 130 MB more. That is ignored, because such machines rarely train on the CPU.
"""
GGUF_BYTES = 40_000_000
"""Bytes of the modules and buffers that read and write GGUF files."""
COMPACT_BYTES = 80_000_000
"""Bytes of the buffers of the threads that write and verify a compact file."""
INTEGER = 4
"""Bytes per weight of the largest tensor while its integers are computed again and compared: four copies."""
FRAGMENTATION = 0.45
"""Bytes lost to heap fragmentation (glibc) per byte of activations that are saved for the backward pass. Measured."""
PREDICTED = 64 * (FLOAT + FLOAT)
"""Bytes per token of retained text: the most probable tokens and their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Peak memory of a phase, in bytes."""

    device: int
    host_resident: int = 0
    """Bytes that are needed on the host in any case, even if the device is not the CPU."""
    host_transfer: int = 0
    """Bytes on the host for copies to or from the device. Not needed if the device is the CPU."""
    cpu_only: int = 0
    """Bytes to add if the device is the CPU: heap fragmentation and copies. Negative if the phase needs less there."""
    processes: int = 1
    """Number of processes that each need these bytes, on a device of their own if it is not the CPU."""

    @property
    def host(self) -> int:
        """Bytes of host memory of all processes if the device is not the CPU."""
        return self.processes * (self.host_resident + self.host_transfer)

    @property
    def combined(self) -> int:
        """Bytes of memory of all processes in total if the device is the CPU."""
        return self.processes * (self.device + self.host_resident + self.cpu_only)


def memory_by_phase(model: Dimensions, spec: JobSpec) -> dict[Phase, Footprint]:
    """Return the peak memory of each phase that the job has, in the order of the phases."""
    weights, written, whole = weights_bytes(model, spec), HALF * model.parameters, spec.value_bytes * model.parameters
    beside = 2 * whole if spec.sharded else 0  # the whole model, before it is split and after it is gathered
    phases = {
        Phase.LOADING: Footprint(weights, beside, host_transfer=whole),
        Phase.EVALUATING: Footprint(weights + forward_bytes(model, spec.evaluate.tokens, spec)),
    }
    if spec.repair.retains:
        phases[Phase.WRITING] = Footprint(weights + _writing(model, spec))
    if spec.prunes:
        phases[Phase.PRUNING] = Footprint(weights + pruning_bytes(model, spec))
    if spec.reconstructs:
        phases[Phase.RECONSTRUCTING] = _reconstructing(model, spec)
    if spec.repair.method is not RepairMethod.NONE:
        phases[Phase.TRAINING] = _training(model, spec)
    # A copy of the process loads the written checkpoint on the host, the largest matrix twice. For GGUF, it loads all
    # weights twice.
    loading = FLOAT * (model.parameters + model.largest)
    if any(each.is_gguf for each in spec.output.formats):
        loading += FLOAT * model.parameters + GGUF_BYTES
    if any(each.is_compact for each in spec.output.formats):
        loading += COMPACT_BYTES
    if any(each.is_compact and each.rounds for each in spec.output.formats):
        loading += INTEGER * model.largest
    block = _converted(model, spec)  # on the CPU it does not count: it is freed before the checkpoint is loaded
    phases[Phase.EXPORTING] = Footprint(weights + block, loading + beside, host_transfer=written, cpu_only=-block)
    if spec.sharded:
        for phase in phases.keys() - {Phase.LOADING, Phase.EXPORTING}:
            phases[phase] = replace(phases[phase], processes=spec.devices)
    kept = dict.fromkeys(phases, PROCESS_BYTES + retained_bytes(spec)) | {Phase.LOADING: PROCESS_BYTES}
    return {phase: replace(need, host_resident=need.host_resident + kept[phase]) for phase, need in phases.items()}


def _converted(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the largest block or matrix in float32. Returns 0 if the model is float32 or sharded."""
    largest = max(model.largest, *(sum(each.total for each in block) for block in model.blocks))
    return 0 if spec.value_bytes == FLOAT or spec.sharded else FLOAT * largest


def _writing(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes that the dense model needs to write text and to record its predictions.

    These are the keys and values of the windows that it writes at the same time, with a copy of the keys and values of
    one block, and the logits or a forward pass. If a dataset is retained, the model only reads one window at a time.
    """
    length, together = spec.repair.sequence_tokens, spec.written_at_once
    if not together:
        return forward_bytes(model, length, spec)
    cache = 2 * spec.value_bytes * together * length * model.keys * len(model.blocks)
    return cache + max(
        cache // len(model.blocks) + 3 * logits_bytes(model, together), forward_bytes(model, length, spec)
    )


def _reconstructing(model: Dimensions, spec: JobSpec) -> Footprint:
    """Return the memory that reconstruction needs.

    The dense model and its outputs for every calibration sequence are on the host. One block of the dense model is on
    the device.
    """
    states, tokens = state_bytes(model, spec), spec.prune.calibration.tokens
    block = max(sum(each.total for each in block) for block in model.blocks)
    tuned = block * (FLOAT + 6 * FLOAT + 1)
    weights, saved = spec.value_bytes * model.parameters, saved_bytes(model, tokens, spec)
    return Footprint(weights + 2 * states + tuned + saved // len(model.blocks), weights + 2 * states)


def _training(model: Dimensions, spec: JobSpec) -> Footprint:
    """Return the memory that training needs: weights, state of the repair method, and activations of a micro-batch."""
    parts = training_parts(model, spec)
    host = round(parts.best_state / spec.devices) if spec.repair.evaluate_interval else 0
    if spec.repair.method is RepairMethod.LORA_REPRUNE:
        host += model.targets // 8  # the former zeros
    beside = max(0, parts.copied - parts.temporary)  # one process makes the copy, and not during a step
    alone = round(FRAGMENTATION * parts.saved + beside / spec.devices)
    return Footprint(parts.device, host, round(parts.copied / spec.devices), alone, spec.devices)


def retained_bytes(spec: JobSpec) -> int:
    """Return the bytes of the dense model's predictions for the retained text.

    They are on the host from the writing to the end of the job.
    """
    return PREDICTED * spec.retained_tokens if spec.repair.retains else 0


def resume_bytes(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of a saved state on the disk, with the retained text.

    It has the pruned weights and the state of the repair method, with `evaluate_interval` twice. The state of
    `masked_full`, of a high density, and of a job with `evaluate_interval` can need more than `FLOAT` bytes per weight.
    Raises ValueError if the data type is `auto`.
    """
    repair = spec.repair
    state = training_parts(model, spec).best_state if repair.method is not RepairMethod.NONE else 0
    return max(FLOAT * model.parameters, state * (2 if repair.evaluate_interval else 1)) + retained_bytes(spec)
