"""Bytes of weights and activations: what a model needs for a forward and a backward pass."""

import math
from collections.abc import Iterator

from core.specs import JobSpec
from seft.models.dimensions import Dimensions, Matrix

FLOAT = 4
"""Bytes of a float32 number."""
WHOLE_LOGITS = 1 << 24
"""Maximum number of logits that are in memory at the same time, as in `seft.loss`."""
WHOLE = 4
"""Copies of all logits at the end of a loss with gradients, if a model caps or scales them.

These are the output of the cap, the logits, and their gradients twice.
"""
GATED = 1.5
"""Largest ratio of outputs of up projections to inputs of down projections in a block without a gate."""


def weights_bytes(model: Dimensions, spec: JobSpec) -> int:
    """Return the bytes of the weights on each device. If they are split, these include the largest block twice."""
    whole = spec.value_bytes * model.parameters
    if not spec.sharded:
        return whole
    blocks = [spec.value_bytes * sum(each.total for each in block) for block in model.blocks]
    kept = spec.value_bytes * sum(math.ceil(each.total * _kept(each, model, spec.devices)) for each in matrices(model))
    return whole - sum(blocks) + kept + 2 * max(blocks)


def _kept(matrix: Matrix, model: Dimensions, devices: int) -> float:
    """Return the largest fraction of a group of equal matrices that a device keeps. Stacked experts are kept whole."""
    experts = model.stacked and matrix.count > 1
    return math.ceil(matrix.count / devices) / matrix.count if experts else 1 / devices


def logits_bytes(model: Dimensions, tokens: int) -> int:
    """Return the bytes of the logits of `tokens` tokens that are in memory at the same time."""
    return FLOAT * model.vocabulary * min(tokens, max(1, WHOLE_LOGITS // model.vocabulary))


def head_bytes(model: Dimensions, tokens: int, spec: JobSpec, copies: int, whole: int) -> int:
    """Return the peak bytes of the logits of `tokens` tokens and of what is computed from them.

    The logits of some tokens at a time are in memory `copies` times. If the model caps or scales its logits, it
    computes those of all tokens, which are in memory `whole` times at the end, and once less before.
    """
    every = spec.value_bytes * model.vocabulary * tokens if model.changes_logits else 0
    return max(whole * every, (whole - 1) * every + copies * logits_bytes(model, tokens))


def forward_bytes(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return the peak bytes of a forward pass over `tokens` tokens without gradients.

    This is the peak in one block, or the logits and their logarithms, if they are larger.
    """
    hidden = spec.value_bytes * tokens * model.hidden
    return max(head_bytes(model, tokens, spec, 2, 2) + hidden, block_bytes(model, tokens, spec))


def block_bytes(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return the peak bytes of the activations of one block without gradients."""
    widest = max(each.cols for block in model.blocks for each in block)
    return spec.value_bytes * tokens * (3 * model.hidden + 3 * widest)


def saved_bytes(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return the bytes of the activations that a forward pass over `tokens` tokens saves for the backward pass."""
    return round(spec.value_bytes * tokens * sum(_saved_by_block(model, block) for block in model.blocks))


def recomputed_bytes(model: Dimensions, tokens: int, spec: JobSpec) -> int:
    """Return the same as `saved_bytes` if only the inputs of the blocks and the activations of one block are saved."""
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


def matrices(model: Dimensions) -> Iterator[Matrix]:
    """Yield the matrices of all blocks."""
    return (matrix for block in model.blocks for matrix in block)
