"""Estimate the peak memory of a job in each phase. The formulas follow what the training code keeps in memory.

They count weights and activations in the data type of the job, and `PROCESS_BYTES` for the process. If the device is
the CPU, device and host have the same memory. `tests/worker/test_footprint.py` compares the estimates with real runs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.spec_parts import RepairMethod
from core.specs import JobSpec
from core.states import Phase
from seft.config import Allocation, PruneMethod, Refinement, Variant
from seft.models.dimensions import Dimensions, Matrix

FLOAT, HALF = 4, 2
WHOLE_LOGITS = 1 << 24
"""Maximum number of logits that are in memory at the same time, as in `seft.loss`."""
PROCESS_BYTES = 410_000_000
"""Bytes of a process that has loaded torch, transformers, a tokenizer and the text of the dataset.

40 MB of it are for its copy, which waits to verify the checkpoint and shares most of its memory. With a torch built for
CUDA, the process needs 130 MB more. That is ignored, because such machines rarely train on the CPU.
"""
GGUF_BYTES = 100_000_000
"""Bytes of the modules and buffers that read and write GGUF files."""
COMPACT_BYTES = 80_000_000
"""Bytes of the buffers of the threads that write and verify a compact file."""
INTEGER = 4
"""Bytes per weight of the largest tensor while its integers are made again and compared: four copies of them."""
ACTIVE, IN_DTYPE, CANDIDATE, LISTED = 14, 3, 16, 4
"""Bytes per trained weight (index, value, age, gradient), and how many more numbers it has in the data type of the job
(base, two moments). Then bytes per candidate, and candidates per trained weight.

A candidate is a weight that a topology update can select.
"""
GATED = 1.5
"""Ratio above which a block has a gate.

It is the number of values that the up projections produce, divided by the number that the down projections read.
"""
FRAGMENTATION = 0.45
"""Bytes lost to heap fragmentation (glibc) per byte of activations that are saved for the backward pass. Measured."""
VECTOR = 16
"""Bytes per trained value of a low-rank method: the value, its two moments and its gradient."""
WITH_INITIAL = VECTOR + FLOAT
"""Bytes per trained value of a norm or bias: as `VECTOR`, and its initial value."""
VECTORS, MEANS = 4, 4
"""With the density `all`: vectors over rows and columns of a matrix for the optimizer, and for a rising sparsity."""
CHUNK, COPIES = 1 << 24, 4
"""Largest number of weights that the optimizer changes at a time, and its float32 copies of them."""
PREDICTED = 64 * (FLOAT + FLOAT)
"""Bytes per token of retained text: the most probable tokens and their log-probabilities."""
SOLVERS = {PruneMethod.SPARSEGPT: (16, 16), PruneMethod.ALPS: (24, 60), PruneMethod.ADMM: (16, 56)}
"""Bytes while a matrix is pruned, per entry of its Hessian and per weight."""
SELECTION, REFINED = 21, 32
"""Bytes per weight of a matrix while its zeros are selected, and while DSnoT moves them."""
INDEXED = 21
"""Bytes per nonzero of a matrix while its gradients are added up: two indices, the gradient and the mask."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Peak memory of a phase, in bytes."""

    device: int
    host_resident: int = 0
    """Bytes that are needed on the host in any case, even if the device is not the CPU."""
    host_transfer: int = 0
    """Bytes on the host for copies to or from the device. Not needed if the device is the CPU."""
    cpu_only: int = 0
    """Bytes that are needed only if the device is the CPU: lost to heap fragmentation, or copies for the host."""
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
    beside = 2 * whole if spec.sharded else 0  # before a model is split, and after it was put together again
    phases = {
        Phase.LOADING: Footprint(weights, beside, host_transfer=whole),
        Phase.EVALUATING: Footprint(weights + _forward(model, spec.evaluate.tokens, spec)),
    }
    if spec.repair.retains:
        phases[Phase.WRITING] = Footprint(weights + _writing(model, spec))
    if not spec.prune.gradual:
        phases[Phase.PRUNING] = Footprint(weights + _pruning(model, spec))
    if spec.prune.reconstruct_epochs:
        phases[Phase.RECONSTRUCTING] = _reconstructing(model, spec)
    if spec.repair.method is not RepairMethod.NONE:
        phases[Phase.TRAINING] = _training(model, spec)
    # A copy of the process loads the written checkpoint on the host, and one weight twice. GGUF's loader has all twice.
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
    return {phase: replace(need, host_resident=need.host_resident + PROCESS_BYTES) for phase, need in phases.items()}


def weights_bytes(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the weights on each device. If they are split, one block is whole, and copied meanwhile."""
    whole = spec.value_bytes * model.parameters
    if not spec.sharded:
        return whole
    blocks = [spec.value_bytes * sum(each.total for each in block) for block in model.blocks]
    kept = spec.value_bytes * sum(math.ceil(each.total * _kept(each, model, spec.devices)) for each in _matrices(model))
    return whole - sum(blocks) + kept + 2 * max(blocks)


def _converted(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the largest block or matrix in float32, if a device has the model in another data type."""
    largest = max(model.largest, *(sum(each.total for each in block) for block in model.blocks))
    return 0 if spec.value_bytes == FLOAT or spec.sharded else FLOAT * largest


def _kept(matrix: Matrix, model: Dimensions, devices: int) -> float:
    """Return the largest fraction of equal matrices that one of several devices keeps: of experts, whole ones."""
    experts = model.stacked and matrix.count > 1
    return math.ceil(matrix.count / devices) / matrix.count if experts else 1 / devices


def _logits(model: Dimensions, tokens: int) -> int:
    """Return the bytes of the logits of `tokens` tokens that are in memory at the same time."""
    return FLOAT * model.vocabulary * min(tokens, max(1, WHOLE_LOGITS // model.vocabulary))


def _forward(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return the peak bytes of a forward pass over `tokens` tokens without gradients.

    This is the peak in one block, or the logits and their logarithms, if they are larger.
    """
    hidden = spec.value_bytes * tokens * model.hidden
    return max(2 * _logits(model, tokens) + hidden, _block_peak(model, tokens, spec))


def _block_peak(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    widest = max(each.cols for block in model.blocks for each in block)
    return spec.value_bytes * tokens * (3 * model.hidden + 3 * widest)


def _writing(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes that the dense model needs to write text and to record its predictions.

    These are the keys and values of the windows that it writes at a time. They are copied for each new token. If a
    dataset is retained, the model only reads one window at a time.
    """
    length, together = spec.repair.sequence_tokens, spec.written_at_once
    if not together:
        return _forward(model, length, spec)
    cache = 2 * spec.value_bytes * together * length * model.keys * len(model.blocks)
    return cache + max(cache // len(model.blocks) + 3 * _logits(model, together), _forward(model, length, spec))


def _pruning(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes that pruning needs in addition to the weights.

    These are the hidden states of all calibration sequences. They are in memory twice while a block computes the next
    ones, or once together with the statistics of a block. Before, curvatures need a backward pass over one sequence.
    """
    if not spec.prune_config().text_users:
        return max(_mask_selection(matrix) for matrix in _matrices(model))
    (states, statistics), tokens = pruning_parts(model, spec), spec.prune.calibration.tokens
    pruned = states + max(states, statistics) + _block_peak(model, tokens, spec)
    if not spec.prune_config().curvature_windows:
        return pruned
    backward = max(3 * _logits(model, tokens), _block_peak(model, tokens, spec))
    return max(pruned, _recomputed(model, tokens, spec) + backward)


def pruning_parts(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Return the bytes of the hidden states of the calibration text, and of the statistics of a block."""
    return _states(model, spec), max(_statistics(block, spec) for block in model.blocks)


def _states(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the hidden states of all calibration sequences."""
    calibration = spec.prune.calibration
    return spec.value_bytes * calibration.samples * calibration.tokens * model.hidden


def _statistics(block: tuple[Matrix, ...], spec: JobSpec) -> int:
    """Return the bytes of the statistics of a block's layers, and of the work on the layer that is being pruned.

    The copies include the sort of the scores in an N:M pattern and on a GPU.
    """
    refined = REFINED if spec.prune.refine is Refinement.DSNOT else 0
    factors, copies = SOLVERS.get(spec.prune.method, (0, SELECTION))
    largest = (max(factors * each.cols**2 + copies * each.weights, refined * each.weights) for each in block)
    return max(largest, default=0) + (_hessians(block) if factors or refined else 0)


def _hessians(block: tuple[Matrix, ...]) -> int:
    return sum(FLOAT * each.count * each.cols**2 for each in block if not each.shares_inputs)


def _mask_selection(matrix: Matrix) -> int:
    """Return the bytes needed to select the zeros of a matrix: the scores, their sort order and the mask."""
    return SELECTION * matrix.weights


def _reconstructing(model: Dimensions, spec: JobSpec) -> Footprint:
    """Return the memory that reconstruction needs.

    The dense model and its outputs for every calibration sequence are on the host. One block of the dense model is on
    the device.
    """
    states, tokens = _states(model, spec), spec.prune.calibration.tokens
    block = max(sum(each.total for each in block) for block in model.blocks)
    tuned = block * (FLOAT + 6 * FLOAT + 1)
    weights, saved = spec.value_bytes * model.parameters, _saved_for_backward(model, tokens, spec)
    return Footprint(weights + 2 * states + tuned + saved // len(model.blocks), weights + 2 * states)


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """The bytes that training needs at its peak, by part."""

    weights: int
    """The model, and the dense model that it learns from, if there is one."""
    state: int
    """What the repair method keeps between two steps, and the gradients that it adds up."""
    saved: int
    """Activations of a micro-batch that are saved for the backward pass."""
    work: int
    """The rest of a step: the logits, the activations of one block, and the copies that change its weights."""
    chosen: int
    """What the choice of the weights that become zero needs, between two steps."""
    copied: int
    """The copy of all nonzeros that is saved between two steps, on the host."""
    best_state: int
    """The copy of the best state, on the host. One process has it."""

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.state + max(self.saved + self.work, self.chosen)


def _training(model: Dimensions, spec: JobSpec) -> Footprint:
    """Return the memory that training needs: weights, state of the repair method, and activations of a micro-batch."""
    parts = training_parts(model, spec)
    host = round(parts.best_state / spec.devices) if spec.repair.evaluate_interval else 0
    host += retained_bytes(spec)
    beside = max(0, parts.copied - max(parts.saved + parts.work, parts.chosen))  # it is not made during a step
    alone = round(FRAGMENTATION * parts.saved) + beside
    return Footprint(parts.device, host, round(parts.copied / spec.devices), alone, spec.devices)


def retained_bytes(spec: JobSpec) -> int:
    """Return the bytes of the dense model's predictions for the retained text, on the host."""
    return PREDICTED * spec.retained_tokens if spec.repair.retains else 0


def training_parts(model: Dimensions, spec: JobSpec) -> TrainingParts:
    """Return the bytes of each part of the memory that training needs at its peak."""
    repair = spec.repair
    tokens = min(repair.micro_batch * repair.sequence_tokens, repair.batch_tokens) // spec.devices
    head, models = 3, 1
    if repair.distill_weight or repair.hidden_weight:
        head, models = (5 if repair.distill_weight else 3), 2
    if repair.retains:
        head = 5
    hidden = spec.value_bytes * tokens * model.hidden
    teacher = hidden * (len(model.blocks) if repair.hidden_weight else 1) * (models - 1)
    whole = spec.trains_all
    step = _block_peak(model, tokens, spec) + (_step_of_nonzeros(model, spec) if whole else 0)
    peak = max(head * _logits(model, tokens), step)
    state, best_state = _all_nonzeros(model, spec) if whole else _method(model, spec)
    saved = (_recomputed if repair.activation_checkpointing else _saved_for_backward)(model, tokens, spec)
    if repair.norms_and_biases:
        state, best_state = state + WITH_INITIAL * model.vectors, best_state + VECTOR * model.vectors
        blocks = 1 if repair.activation_checkpointing else len(model.blocks)
        saved += hidden * (2 * blocks + 1)  # the outputs of the norms before scaling
    chosen = _choice_of_zeros(model, spec) if whole and spec.prune.gradual else 0
    copied = spec.value_bytes * _present(model, spec) + model.targets // 8 if whole else 0
    weights = models * weights_bytes(model, spec)
    return TrainingParts(weights, state, saved, peak + teacher, chosen, copied, best_state)


def _saved_for_backward(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return the bytes of the activations that a forward pass over `tokens` tokens saves for the backward pass."""
    return round(spec.value_bytes * tokens * sum(_saved_by_block(model, block) for block in model.blocks))


def _recomputed(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return these bytes if only the inputs of the blocks are saved, and the activations of one block at a time."""
    largest = max(_saved_by_block(model, block) for block in model.blocks)
    return round(spec.value_bytes * tokens * (model.hidden * len(model.blocks) + largest))


def _saved_by_block(model: Dimensions, block: tuple[Matrix, ...]) -> float:
    """Return the number of values that a block saves per token for the backward pass.

    These are the outputs of the linear layers, two norms, the attention output, and the output of the activation
    function. A block with a gate also saves the product of gate and activation.
    """
    outputs = sum(each.count * each.use * each.rows for each in block)
    down = [each for each in block if each.rows == model.hidden and each.cols not in {model.hidden, model.attention}]
    widths = {each.cols for each in down} | {2 * each.cols for each in down}
    inner = sum(each.count * each.use * each.cols for each in down)
    wide = (each for each in block if each.cols == model.hidden and each.rows in widths)
    up = sum(each.count * each.use * each.rows for each in wide)
    return outputs + 2 * model.hidden + model.attention + (2 if up > GATED * inner else 1) * inner


def _all_nonzeros(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Return what `_method` returns, for the density `all`. The weights are changed in place.

    The gradients of several micro-batches are added up: those of the nonzeros, or, if the sparsity rises, first those
    of all weights.
    """
    sides = sum(matrix.count * (matrix.rows + matrix.cols) for matrix in _matrices(model))
    vectors = FLOAT * sides * (VECTORS + (MEANS if spec.prune.gradual else 0))
    summed = FLOAT * _present(model, spec) if sums_gradients(spec) else 0
    return vectors + summed, vectors + FLOAT * _nonzeros(model, spec) + model.targets // 8


def _step_of_nonzeros(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes with which the backward pass of the largest matrix changes its nonzeros.

    These are its gradient, and either the copies of an optimizer step, or those of adding the gradient to a sum.
    """
    largest = max(matrix.weights for matrix in _matrices(model))
    if sums_gradients(spec):
        return FLOAT * largest + round(INDEXED * largest * _present(model, spec) / model.targets)
    return FLOAT * (largest + COPIES * min(largest, CHUNK))


def _choice_of_zeros(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes for a rising sparsity before the first step, or between two steps.

    These are the choice of the weights that become zero, or the calibration text with which `owl` distributes the
    zeros.
    """
    calibrated = 2 * _states(model, spec) + _block_peak(model, spec.prune.calibration.tokens, spec)
    reads_text = spec.allocation is Allocation.OWL
    return max(calibrated if reads_text else 0, *map(_mask_selection, _matrices(model)))


def sums_gradients(spec: JobSpec) -> bool:
    """Return whether a step has several micro-batches, so that their gradients are added up."""
    repair = spec.repair
    return repair.batch_tokens > repair.micro_batch * repair.sequence_tokens


def _nonzeros(model: Dimensions, spec: JobSpec) -> int:
    return round((1 - spec.sparsity) * model.targets)


def _present(model: Dimensions, spec: JobSpec) -> int:
    """Return the largest number of nonzeros during the training."""
    return model.targets if spec.prune.gradual else _nonzeros(model, spec)


def _method(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Return the peak bytes of the state of the repair method, and the bytes of its copy on the host.

    The copy is needed if the job keeps the best state. Otherwise the second number is 0.
    """
    repair = spec.repair
    config = spec.repair_config()
    count = round(config.trained_fraction * model.targets) if config else 0
    active = ACTIVE + IN_DTYPE * spec.value_bytes
    match repair.method:
        case RepairMethod.SEFT:
            # The first event replaces the whole active set.
            window = LISTED * CANDIDATE if repair.steps > 1 else 0
            # The published variant sums the gradients of all weights before an event.
            sums = FLOAT * model.targets if repair.variant is Variant.PUBLISHED else 0
            return count * (active + window) + sums, count * active + sums
        case RepairMethod.FIXED_MASK:
            return count * active, count * active
        case RepairMethod.MASKED_FULL:
            return _nonzeros(model, spec) * active, _nonzeros(model, spec) * active
        case _:
            return count * VECTOR, count * VECTOR


def _matrices(model: Dimensions) -> Iterator[Matrix]:
    return (matrix for block in model.blocks for matrix in block)
