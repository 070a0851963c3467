"""Convert the floating-point operations of a job into seconds, for a device on which no similar job has run yet.

A worker measures how many operations per second its device reaches when it multiplies matrices (`worker.calibration`).
A job does other things too, see `OTHERS`. docs/log.md has the measurement behind the constants.
"""

import math

from core.spec_parts import RepairMethod
from core.specs import Dtype, Flops, JobSpec
from core.states import Phase
from seft.config import Allocation, PruneMethod, Refinement
from seft.models.dimensions import Dimensions

OTHERS, MOST_OTHERS = 0.42, 1.7
"""Time of norms, softmax, optimizer and so on, as a fraction of the time of the matrix products.

`OTHERS` is the fraction in float32. In bfloat16 these operations gain little, so the fraction grows with the speed of
the products, up to `MOST_OTHERS`. It was measured on a CPU on which products in bfloat16 are 4.2 times as fast as in
float32. Other devices were not measured.
"""
FORWARD, BACKWARD = 2, 4
"""Operations per weight and token of a forward pass, and of the backward pass after it."""
WRITTEN, WRITTEN_ALONE = 2, 33
"""If n windows are written at the same time, a token takes as long as WRITTEN + WRITTEN_ALONE / n forward passes of it.

All weights are read once for n tokens. Measured with SmolLM2-135M on a CPU: 18.5 with 2 windows, 6.1 with 8.
"""
PRODUCTS = {PruneMethod.SPARSEGPT: 5, PruneMethod.ALPS: 30, PruneMethod.ADMM: 24}
"""Number of products of a weight matrix with its Hessian, by method. The other methods compute none."""
FIXED_SECONDS = {Phase.LOADING: 8.0, Phase.EXPORTING: 8.0, Phase.UPLOADING: 1.0}
"""Seconds that a phase takes for the smallest model. Processes start, and libraries are imported."""
WEIGHTS_PER_SECOND = 5e7
"""Weights that are read, written or uploaded per second."""


def estimate_seconds(spec: JobSpec, model: Dimensions, flops: Flops) -> dict[Phase, float]:
    """Return the seconds of each phase of the job. `flops` is the speed at which the device multiplies matrices.

    If `flops` has no entry for the data type of the job, the phases that compute are missing in the result. Raises
    ValueError if the data type is `auto`.
    """
    seconds = {phase: fixed + model.parameters / WEIGHTS_PER_SECOND for phase, fixed in FIXED_SECONDS.items()}
    speed = flops.get(spec.resolved_dtype)
    if speed is None:
        return seconds
    others = min(OTHERS * speed / flops.get(Dtype.FLOAT32, speed), MOST_OTHERS)
    return seconds | {phase: number / speed * (1 + others) for phase, number in count_operations(spec, model).items()}


def count_operations(spec: JobSpec, model: Dimensions) -> dict[Phase, float]:
    """Return the number of floating-point operations of each phase that computes."""
    evaluate, repair = spec.evaluate, spec.repair
    retained = _forward(model, spec.retained_tokens, repair.sequence_tokens)
    evaluation = evaluate.windows * _forward(model, evaluate.tokens, evaluate.tokens)
    evaluation += _forward(model, judged_retained(spec), repair.sequence_tokens)
    operations = {Phase.EVALUATING: len(spec.scored) * evaluation}
    pruning = sum(pruning_operations(spec, model).values())
    if spec.prunes:
        operations[Phase.PRUNING] = pruning
    if repair.retains:
        operations[Phase.WRITING] = retained * writing_passes(spec)
    if spec.reconstructs:
        passes = spec.prune.reconstruct_epochs * (FORWARD + BACKWARD)
        operations[Phase.RECONSTRUCTING] = passes * calibration_tokens(spec) * model.active_targets
    if repair.method is not RepairMethod.NONE:
        trained = _forward(model, repair.steps * repair.batch_tokens, repair.sequence_tokens)
        distills = bool(repair.distill_weight or repair.hidden_weight)
        # The operations of one device. On a CPU this is too low, because all processes share its cores.
        operations[Phase.TRAINING] = trained * (1 + BACKWARD / FORWARD + distills) / spec.devices
        operations[Phase.TRAINING] += evaluations_in_training(spec) * evaluation
        if repair.method is RepairMethod.LORA_REPRUNE:
            operations[Phase.TRAINING] += pruning
    return operations


def judged_retained(spec: JobSpec) -> int:
    """Return the number of tokens of retained text that an evaluation reads: an eighth of the windows, at least one."""
    length = spec.repair.sequence_tokens
    return max(1, spec.retained_tokens // length // 8) * length if spec.retained_tokens else 0


def writing_passes(spec: JobSpec) -> float:
    """Return the time per token of retained text, in forward passes of it. A token of a dataset is only read."""
    together = spec.written_at_once
    return WRITTEN + WRITTEN_ALONE / together if together else 1.0


def _forward(model: Dimensions, tokens: float, length: int) -> float:
    """Return the operations of a forward pass over `tokens` tokens in windows of `length`."""
    return _run_blocks(model, tokens, length) + FORWARD * tokens * (model.parameters - model.targets)


def _run_blocks(model: Dimensions, tokens: float, length: int) -> float:
    """Return the operations of a forward pass through the decoder blocks alone.

    In the attention, a token reads half of its window on average.
    """
    return FORWARD * tokens * (model.active_targets + len(model.blocks) * model.attention * length)


def calibration_tokens(spec: JobSpec) -> int:
    """Return the number of tokens of the calibration text, or 0 if nothing reads such text."""
    calibration = spec.prune.calibration
    return calibration.samples * calibration.tokens if spec.prune_config().text_users else 0


def evaluations_in_training(spec: JobSpec) -> int:
    """Return the largest number of evaluations on the held-out text in the training. One follows the last step."""
    interval = spec.repair.evaluate_interval
    return math.ceil(spec.repair.steps / interval) if interval else 0


def pruning_operations(spec: JobSpec, model: Dimensions) -> dict[str, float]:
    """Return the operations of the parts of pruning.

    These are the runs of the blocks (`passes`), the Hessians (`statistics`), and the products with them (`solving`).
    Factorisations of a Hessian are not counted, because they are few products.
    """
    prune = spec.prune
    config, length = spec.prune_config(), prune.calibration.tokens
    tokens = calibration_tokens(spec)
    # A pass through the model runs each block twice, and the last block once. `owl` needs such a pass before pruning.
    passes = (2 if spec.allocation is Allocation.OWL else 1) * (2 - 1 / len(model.blocks))
    # Each block runs forward twice, and backward to its inputs once. The head runs forward only once: ignored.
    gradients = 3 * _forward(model, config.curvature_windows * length, length)
    operations = {"passes": passes * _run_blocks(model, tokens, length) + gradients}
    products = PRODUCTS.get(prune.method, 0)
    if products or prune.refine is Refinement.DSNOT:
        matrices = [matrix for block in model.blocks for matrix in block]
        operations["statistics"] = sum(
            2 * each.use * each.count * each.cols**2 * tokens for each in matrices if not each.shares_inputs
        )
        operations["solving"] = sum(2 * each.total * each.cols * products for each in matrices)
    return operations
