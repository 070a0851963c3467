"""Peak memory of a job in each phase, derived from what the training code keeps in memory.

Counts tensors in float32, the type in which a worker holds a model, plus `PROCESS_BYTES` per process. If the device is
the CPU, device and host are the same memory. `tests/worker/test_footprint.py` compares these numbers with real runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.estimate.dimensions import Dimensions, Matrix
from core.specs import JobSpec, RepairMethod
from core.states import Phase
from seft.config import Allocation, PruneMethod, Refinement

FLOAT, HALF = 4, 2
WHOLE_LOGITS = 1 << 24
"""Maximum number of logits in memory at a time, as in `seft.loss`."""
PROCESS_BYTES = 350_000_000
"""Bytes of a process that has loaded torch, transformers, a tokenizer and the text. Two such processes run while a
checkpoint is verified. Torch built for CUDA needs 130 MB more. This is ignored, because with that build the device is
rarely the CPU."""
ACTIVE, CANDIDATE, LISTED = 26, 16, 4
"""Bytes per trained position (index, base, value, moments, age, gradient), bytes per candidate position, and the number
of candidates kept per position that an event selects."""
GATED = 1.5
"""A block has a gate if its up projections produce more than this many times the values that its down projections
consume."""
FRAGMENTATION = 0.45
"""Heap fragmentation of glibc, as a fraction of the activations saved for backward. Measured in
`tests/worker/test_footprint.py`."""
VECTOR = 16
"""Bytes per value that is trained in a dense vector: the value, its moments and its gradient."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a phase needs at its peak."""

    device: int
    host_resident: int = 0
    """Bytes on the host in addition to the device, whatever the device is."""
    host_transfer: int = 0
    """Bytes on the host only to copy data to or from a device that is not the CPU."""
    fragmentation: int = 0
    """Bytes lost to heap fragmentation if the device is the CPU."""

    @property
    def host(self) -> int:
        """Bytes on the host if the device is not the CPU."""
        return self.host_resident + self.host_transfer

    @property
    def combined(self) -> int:
        """Bytes in total if the device is the CPU."""
        return self.device + self.host_resident + self.fragmentation


def memory_by_phase(model: Dimensions, spec: JobSpec) -> dict[Phase, Footprint]:
    """Return the peak memory of each phase of a job, in the order of the phases."""
    weights, written = FLOAT * model.parameters, HALF * model.parameters
    phases = {
        Phase.LOADING: Footprint(weights, host_transfer=weights),
        Phase.EVALUATING: Footprint(weights + _forward(model, spec.evaluate.tokens)),
        Phase.PRUNING: Footprint(weights + _pruning(model, spec)),
    }
    if spec.prune.reconstruct_epochs:
        phases[Phase.RECONSTRUCTING] = _reconstructing(model, spec)
    if spec.repair.method is not RepairMethod.NONE:
        phases[Phase.TRAINING] = _training(model, spec)
    # A separate process loads the written checkpoint, on the host.
    phases[Phase.EXPORTING] = Footprint(weights, PROCESS_BYTES + weights, host_transfer=written)
    return {phase: replace(need, host_resident=need.host_resident + PROCESS_BYTES) for phase, need in phases.items()}


def _logits(model: Dimensions, tokens: int) -> int:
    """Return the bytes of the logits that are in memory at a time."""
    return FLOAT * model.vocabulary * min(tokens, max(1, WHOLE_LOGITS // model.vocabulary))


def _forward(model: Dimensions, tokens: int) -> int:
    """Return the bytes of one window without gradients: the peak in a block, or the logits and their logarithms."""
    return max(2 * _logits(model, tokens) + FLOAT * tokens * model.hidden, _block_peak(model, tokens))


def _block_peak(model: Dimensions, tokens: int) -> int:
    widest = max(each.cols for block in model.blocks for each in block)
    return FLOAT * tokens * (3 * model.hidden + 3 * widest)


def _pruning(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of pruning, in addition to the weights.

    These are the hidden states of all calibration windows, held twice while a block passes them on, or once together
    with the statistics of a block.
    """
    if not _needs_calibration(spec):
        return max(_mask_selection(matrix) for matrix in _all(model))
    calibration = spec.prune.calibration
    states = _states(model, spec)
    forward = _block_peak(model, calibration.tokens)
    statistics = max(_statistics(block, spec.prune.method) for block in model.blocks)
    return states + max(states + forward, statistics + forward)


def _states(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the hidden states of all calibration windows."""
    calibration = spec.prune.calibration
    return FLOAT * calibration.samples * calibration.tokens * model.hidden


def _needs_calibration(spec: JobSpec) -> bool:
    """Return whether any step reads calibration text."""
    prune = spec.prune
    return (
        prune.method is not PruneMethod.MAGNITUDE
        or prune.refine is Refinement.DSNOT
        or spec.allocation is Allocation.OWL
        or prune.reconstruct_epochs > 0
    )


def _statistics(block: tuple[Matrix, ...], method: PruneMethod) -> int:
    """Return the bytes of the statistics of a block's linears, and of the work on the linear that is being pruned."""
    match method:
        case PruneMethod.SPARSEGPT:
            factors, copies, hessians = 4, 4, sum(FLOAT * each.cols**2 for each in block)
        case PruneMethod.ALPS:
            factors, copies, hessians = 10, 8, sum(FLOAT * each.cols**2 for each in block)
        case _:
            return max(map(_mask_selection, block))
    return hessians + max(FLOAT * (factors * each.cols**2 + copies * each.weights) for each in block)


def _mask_selection(matrix: Matrix) -> int:
    """Return the bytes of the scores of a linear, their sort order and the mask."""
    return 21 * matrix.weights


def _reconstructing(model: Dimensions, spec: JobSpec) -> Footprint:
    """Return the footprint of reconstruction.

    The dense model and its outputs for every window are on the host, and one block of the dense model is on the device.
    """
    states, tokens = _states(model, spec), spec.prune.calibration.tokens
    block = max(sum(each.weights for each in block) for block in model.blocks)
    tuned = block * (FLOAT + 6 * FLOAT + 1)
    device = FLOAT * model.parameters + 2 * states + tuned + _saved_for_backward(model, tokens) // len(model.blocks)
    return Footprint(device, FLOAT * model.parameters + 2 * states)


def _training(model: Dimensions, spec: JobSpec) -> Footprint:
    """Return the footprint of training: weights, the method's state, and a micro-batch between forward and backward."""
    repair = spec.repair
    tokens = min(repair.micro_batch * repair.sequence_tokens, repair.batch_tokens)
    head, models = 3, 1
    if repair.distill_weight or repair.hidden_weight:
        head, models = (5 if repair.distill_weight else 3), 2
    teacher = FLOAT * tokens * model.hidden * (len(model.blocks) if repair.hidden_weight else 1) * (models - 1)
    peak = max(head * _logits(model, tokens), _block_peak(model, tokens))
    state, best_state = _method(model, spec)
    saved = _saved_for_backward(model, tokens)
    device = models * FLOAT * model.parameters + state + saved + peak + teacher
    host = best_state if repair.evaluate_interval else 0
    return Footprint(device, host, fragmentation=round(FRAGMENTATION * saved))


def _saved_for_backward(model: Dimensions, tokens: int) -> int:
    """Return the bytes of the activations that the forward pass saves for the backward pass."""
    return round(FLOAT * tokens * sum(_saved_by_block(model, block) for block in model.blocks))


def _saved_by_block(model: Dimensions, block: tuple[Matrix, ...]) -> float:
    """Return the number of values that a block saves per token.

    These are the outputs of the linears, two norms, the attention output, the activation's output, and its product with
    the gate if there is one.
    """
    outputs = sum(each.use * each.rows for each in block)
    down = [each for each in block if each.rows == model.hidden and each.cols not in {model.hidden, model.attention}]
    widths = {each.cols for each in down} | {2 * each.cols for each in down}
    inner = sum(each.use * each.cols for each in down)
    up = sum(each.use * each.rows for each in block if each.cols == model.hidden and each.rows in widths)
    return outputs + 2 * model.hidden + model.attention + (2 if up > GATED * inner else 1) * inner


def _method(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Return the peak bytes of a repair method's state, and the bytes of its copy on the host if the best is kept."""
    repair = spec.repair
    count = round(repair.density * model.targets)
    match repair.method:
        case RepairMethod.SEFT:
            # The first event replaces the whole active set.
            window = LISTED * CANDIDATE if repair.steps > 1 else 0
            return count * (ACTIVE + window), count * ACTIVE
        case RepairMethod.FIXED_MASK:
            return count * ACTIVE, count * ACTIVE
        case RepairMethod.MASKED_FULL:
            nonzeros = round((1 - spec.sparsity) * model.targets)
            return nonzeros * ACTIVE, nonzeros * ACTIVE
        case RepairMethod.LORA_REPRUNE:
            return count * VECTOR, count * VECTOR
        case _:
            return FLOAT * model.targets + count * VECTOR, count * VECTOR


def _all(model: Dimensions) -> Iterator[Matrix]:
    return (matrix for block in model.blocks for matrix in block)
