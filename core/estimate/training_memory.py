"""Bytes that training needs: the state of the repair method, and the work of a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from core.estimate.activations import (
    FLOAT,
    WHOLE,
    block_bytes,
    forward_bytes,
    head_bytes,
    matrices,
    recomputed_bytes,
    saved_bytes,
    weights_bytes,
)
from core.estimate.pruning_memory import pruning_bytes, selection_bytes, state_bytes
from core.spec_parts import RepairMethod
from core.specs import JobSpec
from core.states import Phase
from seft.config import Allocation, Variant
from seft.models.dimensions import Dimensions

ACTIVE, IN_DTYPE, CANDIDATE, LISTED = 14, 3, 16, 4
"""Memory per trained weight: `ACTIVE` bytes (index, value, age, gradient) and `IN_DTYPE` numbers in the data type of
the job (base, two moments). Before a topology update there are also `LISTED` candidates of `CANDIDATE` bytes each.

A candidate is a weight that a topology update can select.
"""
VECTOR = 16
"""Bytes per trained value of a low-rank method: the value, its two moments and its gradient."""
WITH_INITIAL = VECTOR + FLOAT
"""Bytes per trained value of a norm or bias: `VECTOR` bytes, and its initial value."""
VECTORS, MEANS = 4, 4
"""Numbers per row and per column of a matrix with the density `all`: for the optimizer, and for a rising sparsity."""
CHUNK, COPIES = 1 << 24, 4
"""Without a kernel, the optimizer changes at most `CHUNK` weights at a time and has `COPIES` float32 copies of them."""
INDEXED = 21
"""Bytes per nonzero of a matrix while its gradients are added up: two indices, the gradient and the mask."""


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
    between: Mapping[Phase, int]
    """What runs between two steps or after the last one, by the phase of a job that does the same."""
    copied: int
    """The copy of all nonzeros that is saved between two steps, on the host. One process makes it."""
    best_state: int
    """The copy of the best state, on the host. One process has it."""

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.weights + self.state + self.temporary

    @property
    def temporary(self) -> int:
        """Bytes on the device that are needed only during a step, or only between two steps."""
        return max(self.saved + self.work, *self.between.values())

    @property
    def limit(self) -> Phase:
        """The phase of which less work would need less memory: of training itself, or of what is in `between`."""
        parts = {**self.between, Phase.TRAINING: max(self.saved + self.work, self.between[Phase.TRAINING])}
        return max(parts, key=lambda each: parts[each])


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
    teacher = hidden * (models - 1)
    if repair.hidden_weight:  # the outputs of the blocks of both models, and their differences in float32
        teacher = (2 * spec.value_bytes + FLOAT) * tokens * model.hidden * len(model.blocks)
    whole = spec.trains_all
    step = block_bytes(model, tokens, spec) + (_step_of_nonzeros(model, spec) if whole else 0)
    peak = max(head_bytes(model, tokens, spec, head, WHOLE + models - 1), step)
    state, best_state = _all_nonzeros(model, spec) if whole else _method(model, spec)
    saved = (recomputed_bytes if repair.activation_checkpointing else saved_bytes)(model, tokens, spec)
    if repair.norms_and_biases:
        state, best_state = state + WITH_INITIAL * model.vectors, best_state + VECTOR * model.vectors
        blocks = 1 if repair.activation_checkpointing else len(model.blocks)
        saved += hidden * (2 * blocks + 1)  # the outputs of the norms before scaling
    between = {Phase.TRAINING: _choice_of_zeros(model, spec) if whole and spec.prune.gradual else 0}
    if repair.evaluate_interval:
        between[Phase.EVALUATING] = forward_bytes(model, spec.evaluate.tokens, spec)
    if repair.method is RepairMethod.LORA_REPRUNE:
        between[Phase.PRUNING] = pruning_bytes(model, spec)
    copied = spec.value_bytes * _present(model, spec) + model.targets // 8 if whole else 0
    weights = models * weights_bytes(model, spec)
    return TrainingParts(weights, state, saved, peak + teacher, between, copied, best_state)


def _all_nonzeros(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Return the same values as `_method`, for the density `all`. The weights are changed in place.

    The gradients of the nonzeros are added up over several micro-batches. If the sparsity rises, all weights are
    nonzeros at first.
    """
    sides = sum(matrix.count * (matrix.rows + matrix.cols) for matrix in matrices(model))
    vectors = FLOAT * sides * (VECTORS + (MEANS if spec.prune.gradual else 0))
    summed = FLOAT * _present(model, spec) if _sums_gradients(model, spec) else 0
    return vectors + summed, vectors + FLOAT * _nonzeros(model, spec) + model.targets // 8


def _step_of_nonzeros(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes that the backward pass of the largest matrix needs to change its nonzeros.

    These are its gradient, and the copies for an optimizer step or for adding the gradient to a sum.
    """
    largest = max(matrix.weights for matrix in matrices(model))
    if _sums_gradients(model, spec):
        return FLOAT * largest + round(INDEXED * largest * _present(model, spec) / model.targets)
    return FLOAT * (largest + COPIES * min(largest, CHUNK))


def _choice_of_zeros(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes that a rising sparsity needs outside of steps.

    Before the first step, `owl` reads the calibration text to distribute the zeros. Between two steps, the weights that
    become zero are chosen.
    """
    calibrated = 2 * state_bytes(model, spec) + block_bytes(model, spec.prune.calibration.tokens, spec)
    reads_text = spec.allocation is Allocation.OWL
    return max(calibrated if reads_text else 0, *map(selection_bytes, matrices(model)))


def has_several_micro_batches(spec: JobSpec) -> bool:
    """Return whether a step has several micro-batches, so that their gradients are added up."""
    repair = spec.repair
    return repair.batch_tokens > repair.micro_batch * repair.sequence_tokens


def _sums_gradients(model: Dimensions, spec: JobSpec) -> bool:
    """Return whether a step of all nonzeros adds up the gradients of all linears until its end."""
    return has_several_micro_batches(spec) or always_sums_gradients(model, spec)


def always_sums_gradients(model: Dimensions, spec: JobSpec) -> bool:
    """Return whether a step of all nonzeros adds up gradients even if it has one micro-batch.

    It does so with experts on several devices, see `seft.repair.all_nonzeros`.
    """
    return spec.devices > 1 and any(matrix.use < 1 for matrix in matrices(model))


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
