"""Bytes that pruning needs in addition to the weights."""

from core.estimate.activations import FLOAT, WHOLE, block_bytes, head_bytes, matrices, recomputed_bytes
from core.specs import JobSpec
from seft.config import PruneMethod, Refinement
from seft.models.dimensions import Dimensions, Matrix

SOLVERS = {PruneMethod.SPARSEGPT: (16, 16), PruneMethod.ALPS: (24, 60), PruneMethod.ADMM: (16, 56)}
"""Bytes while a matrix is pruned: per entry of its Hessian, and per weight."""
SELECTION, REFINED = 21, 32
"""Bytes per weight of a matrix while its zeros are selected, and while DSnoT moves them."""


def pruning_bytes(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes that pruning needs in addition to the weights.

    These are the hidden states of all calibration sequences. They are in memory twice while a block computes its
    outputs. At other times they are in memory once, together with the statistics of a block. Before pruning, the
    allocation `curvature` needs a backward pass over one sequence. If no text is read, only the bytes to select the
    zeros of a matrix are needed.
    """
    if not spec.prune_config().text_users:
        return max(selection_bytes(matrix) for matrix in matrices(model))
    (states, statistics), tokens = pruning_parts(model, spec), spec.prune.calibration.tokens
    pruned = states + max(states, statistics) + block_bytes(model, tokens, spec)
    if not spec.prune_config().curvature_windows:
        return pruned
    backward = max(head_bytes(model, tokens, spec, 3, WHOLE), block_bytes(model, tokens, spec))
    return max(pruned, recomputed_bytes(model, tokens, spec) + backward)


def pruning_parts(model: Dimensions, spec: JobSpec) -> tuple[int, int]:
    """Return the bytes of the hidden states of the calibration text, and of the statistics of a block."""
    return state_bytes(model, spec), max(_statistics(block, spec) for block in model.blocks)


def state_bytes(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the hidden states of all calibration sequences."""
    calibration = spec.prune.calibration
    return spec.value_bytes * calibration.samples * calibration.tokens * model.hidden


def _statistics(block: tuple[Matrix, ...], spec: JobSpec) -> int:
    """Return the bytes of the statistics of a block's layers, and of the work on the layer that is being pruned.

    The bytes per weight include sorting the scores, as with an N:M pattern and on a GPU.
    """
    refined = REFINED if spec.prune.refine is Refinement.DSNOT else 0
    factors, copies = SOLVERS.get(spec.prune.method, (0, SELECTION))
    largest = (max(factors * each.cols**2 + copies * each.weights, refined * each.weights) for each in block)
    return max(largest, default=0) + (_hessians(block) if factors or refined else 0)


def _hessians(block: tuple[Matrix, ...]) -> int:
    return sum(FLOAT * each.count * each.cols**2 for each in block if not each.shares_inputs)


def selection_bytes(matrix: Matrix) -> int:
    """Return the bytes needed to select the zeros of a matrix: the scores, their sort order and the mask."""
    return SELECTION * matrix.weights
