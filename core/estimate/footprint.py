"""The memory of a job, stage by stage: what the training process holds at its fullest moment, by what its code keeps.

Counted are tensors in float32, which is how a worker holds a model. What a process takes before it holds any is
`PROCESS_BYTES`. Where the device is the processor, both sums are of the same memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core.estimate.dimensions import Dimensions, Matrix
from core.specs import JobSpec, RepairMethod
from core.states import Phase
from seft.config import Allocation, PruneMethod, Refinement

FLOAT, HALF = 4, 2
WHOLE_LOGITS = 1 << 24
"""Logits that exist at a time: `seft.loss`."""
PROCESS_BYTES = 350_000_000
"""Of a process that has loaded torch and transformers, a tokenizer and the text. The two processes that are there while
a checkpoint is verified have one each. Torch built for CUDA takes 130 MB more, which is left out: there, the device is
seldom the processor."""
ACTIVE, CANDIDATE, LISTED = 26, 16, 4
"""Bytes of a trained position (index, base, value, moments, age, gradient) and of a candidate of a window, and how many
of these a window lists for every position that an event chooses."""
GATED = 1.5
"""A block whose linears raise the hidden state to more than so many times what they lower again has a gate."""
HOLES = 0.45
"""Of what is kept for backward, as glibc lays it between what is not kept: tests/worker/test_footprint.py."""
VECTOR = 16
"""Bytes of a value that is trained in a vector: it, its moments and its gradient."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """On the device, on its host beside that, and there on the way to or from a device that is not the processor.

    `holes` are what the C library's heap cannot use again where the processor is the device.
    """

    device: int
    beside: int = 0
    passing: int = 0
    holes: int = 0

    @property
    def host(self) -> int:
        """Where the device is another."""
        return self.beside + self.passing

    @property
    def together(self) -> int:
        """Where they are one."""
        return self.device + self.beside + self.holes


def memory_by_phase(model: Dimensions, spec: JobSpec) -> dict[Phase, Bytes]:
    """The fullest moment of each phase of a job, in their order."""
    weights, written = FLOAT * model.parameters, HALF * model.parameters
    found = {
        Phase.LOADING: Bytes(weights, passing=weights),
        Phase.EVALUATING: Bytes(weights + _forward(model, spec.evaluate.tokens)),
        Phase.PRUNING: Bytes(weights + _pruning(model, spec)),
    }
    if spec.prune.reconstruct_epochs:
        found[Phase.RECONSTRUCTING] = _reconstructing(model, spec)
    if spec.repair.method is not RepairMethod.NONE:
        found[Phase.TRAINING] = _training(model, spec)
    # A process of its own loads what was written, on the host.
    found[Phase.EXPORTING] = Bytes(weights, PROCESS_BYTES + weights, passing=written)
    return {phase: replace(held, beside=held.beside + PROCESS_BYTES) for phase, held in found.items()}


def _logits(model: Dimensions, tokens: int) -> int:
    """Bytes of the logits that exist at a time."""
    return FLOAT * model.vocabulary * min(tokens, max(1, WHOLE_LOGITS // model.vocabulary))


def _forward(model: Dimensions, tokens: int) -> int:
    """One window without gradients: the widest moment of a block, or logits and their logarithms."""
    return max(2 * _logits(model, tokens) + FLOAT * tokens * model.hidden, _widest(model, tokens))


def _widest(model: Dimensions, tokens: int) -> int:
    wide = max(each.cols for block in model.blocks for each in block)
    return FLOAT * tokens * (3 * model.hidden + 3 * wide)


def _pruning(model: Dimensions, spec: JobSpec) -> int:
    """Hidden states of all calibration windows, twice where a block hands them on; else the statistics of a block."""
    if not _reads(spec):
        return max(_choosing(matrix) for matrix in _all(model))
    calibration = spec.prune.calibration
    states = _states(model, spec)
    run = _widest(model, calibration.tokens)
    choosing = max(_statistics(block, spec.prune.method) for block in model.blocks)
    return states + max(states + run, choosing + run)


def _states(model: Dimensions, spec: JobSpec) -> int:
    calibration = spec.prune.calibration
    return FLOAT * calibration.samples * calibration.tokens * model.hidden


def _reads(spec: JobSpec) -> bool:
    """Whether anything looks at calibration text."""
    prune = spec.prune
    return (
        prune.method is not PruneMethod.MAGNITUDE
        or prune.refine is Refinement.DSNOT
        or spec.allocation is Allocation.OWL
        or prune.reconstruct_epochs > 0
    )


def _statistics(block: tuple[Matrix, ...], method: PruneMethod) -> int:
    """Of all linears of a block, and what the one needs that is being pruned."""
    match method:
        case PruneMethod.SPARSEGPT:
            factors, copies, kept = 4, 4, sum(FLOAT * each.cols**2 for each in block)
        case PruneMethod.ALPS:
            factors, copies, kept = 10, 8, sum(FLOAT * each.cols**2 for each in block)
        case _:
            return max(map(_choosing, block))
    return kept + max(FLOAT * (factors * each.cols**2 + copies * each.weights) for each in block)


def _choosing(matrix: Matrix) -> int:
    """Scores, their order and the mask."""
    return 21 * matrix.weights


def _reconstructing(model: Dimensions, spec: JobSpec) -> Bytes:
    """The dense twin and what every window gives a part lie on the host, one block of the twin on the device."""
    states, tokens = _states(model, spec), spec.prune.calibration.tokens
    block = max(sum(each.weights for each in block) for block in model.blocks)
    tuned = block * (FLOAT + 6 * FLOAT + 1)
    device = FLOAT * model.parameters + 2 * states + tuned + _kept(model, tokens) // len(model.blocks)
    return Bytes(device, FLOAT * model.parameters + 2 * states)


def _training(model: Dimensions, spec: JobSpec) -> Bytes:
    """Weights, the method's state, and a micro-batch at the turn from forward to backward."""
    repair = spec.repair
    tokens = min(repair.micro_batch * repair.sequence_tokens, repair.batch_tokens)
    head, models = 3, 1
    if repair.distill_weight or repair.hidden_weight:
        head, models = (5 if repair.distill_weight else 3), 2
    taught = FLOAT * tokens * model.hidden * (len(model.blocks) if repair.hidden_weight else 1) * (models - 1)
    turn = max(head * _logits(model, tokens), _widest(model, tokens))
    state, copied = _method(model, spec)
    kept = _kept(model, tokens)
    device = models * FLOAT * model.parameters + state + kept + turn + taught
    return Bytes(device, copied if repair.evaluate_interval else 0, holes=round(HOLES * kept))


def _kept(model: Dimensions, tokens: int) -> int:
    """What backward needs of the forward pass: of every linear the outputs, of every group of them the inputs."""
    return round(FLOAT * tokens * sum(_kept_of_block(model, block) for block in model.blocks))


def _kept_of_block(model: Dimensions, block: tuple[Matrix, ...]) -> float:
    """Entries for each token. Two norms and the attention's result come to the outputs of the linears; so does what
    the activation gives, and its product with the gate where there is one.
    """
    outputs = sum(each.use * each.rows for each in block)
    downs = [each for each in block if each.rows == model.hidden and each.cols not in {model.hidden, model.attention}]
    widths = {each.cols for each in downs} | {2 * each.cols for each in downs}
    inner = sum(each.use * each.cols for each in downs)
    raised = sum(each.use * each.rows for each in block if each.cols == model.hidden and each.rows in widths)
    return outputs + 2 * model.hidden + model.attention + (2 if raised > GATED * inner else 1) * inner


def _method(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Bytes of a method's state at its fullest, and of what is copied to the host where the best one is kept."""
    repair = spec.repair
    count = round(repair.density * model.targets)
    match repair.method:
        case RepairMethod.SEFT:
            # The opening event replaces all of the active set.
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
