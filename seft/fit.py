"""The rules that settings must follow to fit a model. Each of them raises ConfigError. Needs no torch.

The rules need the shapes of the linears that are pruned, the number of parameters and the context length. A server
reads them from a model's config and the headers of its files (`require_fit`), before it accepts a job. The library
applies the same rules to a loaded model.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import assert_never

from seft.config import (
    FORMATS,
    MOST_SPARSE,
    Allocation,
    EvaluateConfig,
    OutputFormat,
    Pattern,
    PruneConfig,
    RepairConfig,
    RepairMethod,
    Retain,
    SparsityOf,
)
from seft.errors import ConfigError, SourceError
from seft.models.dimensions import Dimensions, read_dimensions
from seft.models.shapes import shapes
from seft.models.source import ModelSource

Shape = tuple[int, int]
"""Rows and columns of a weight matrix."""
Size = Callable[[Shape, int], int]
"""Function from the shape of a weight matrix and a rank to the number of trained values: 0 at rank 0, then increasing.
"""
MOST_WEIGHTS = (1 << 31) - 1
"""Largest number of weights in a linear if single weights are trained, because their positions are int32."""
MOST_PACKED = 32_000
"""Largest number of pruned tensors in a compact file. Its index has room for about 1,000 tensors more."""
PACKED_TENSORS = {OutputFormat.COMPACT: 1, OutputFormat.COMPACT_INT8: 2, OutputFormat.COMPACT_NF4: 2}
"""Number of tensors in a compact file for each tensor that is pruned. The scales are counted too."""
MOST_VALUES = 1 << 50
"""More trained values than any model has."""


def require_fit(model: Dimensions, config: PruneConfig | RepairConfig | EvaluateConfig) -> None:
    """Raise ConfigError if settings do not fit a model of these dimensions."""
    match config:
        case PruneConfig():
            _require_prune_fit(model, config)
        case RepairConfig():
            _require_repair_fit(model, config)
        case EvaluateConfig():
            require_within("tokens", config.tokens, model.context)
        case _:
            assert_never(config)


def fitting(source: ModelSource, *settings: PruneConfig | RepairConfig | EvaluateConfig) -> ModelSource:
    """Return a model whose weights are not read yet. Raises ConfigError if settings do not fit it.

    If the headers of its files cannot be read, the rules are only applied to the loaded model.
    """
    if model := _dimensions(source):
        for config in settings:
            require_fit(model, config)
    return source


def require_same_sizes(source: ModelSource, teacher: ModelSource) -> None:
    """Raise ConfigError if a teacher cannot be the dense model from which a model was made.

    The sizes are in the headers of the files. If these cannot be read, only the loaded models are compared.
    """
    own, other = _dimensions(source), _dimensions(teacher)
    if own and other:
        require_teacher_fit(own.sizes, other.sizes)


def _dimensions(source: ModelSource) -> Dimensions | None:
    with suppress(SourceError):
        return read_dimensions(source, shapes(source))
    return None


def require_dense_model(prune: PruneConfig, repair: RepairConfig) -> None:
    """Raise ConfigError if the repair learns from the dense model, and the model to repair is pruned already."""
    if not prune.keeps_zeros:
        return
    for field, value, off in (
        ("retain", str(repair.retain), Retain.NONE),
        ("distill_weight", repair.distill_weight, 0),
        ("hidden_weight", repair.hidden_weight, 0),
    ):
        if value != off:
            rule = f"must be {off} with the sparsity 0, because there is no dense model to learn from"
            raise ConfigError(field, rule, value, f"Set it to {off}, or prune a dense model.")


def require_packable(model: Dimensions, formats: Iterable[OutputFormat]) -> None:
    """Raise ConfigError if a compact file is wanted and cannot have all tensors of a model.

    A model that stacks its experts has two matrices per expert. In the file, they are three tensors per expert.
    """
    matrices = sum(matrix.count for block in model.blocks for matrix in block)
    tensors = matrices * 3 // 2 if model.stacked else matrices
    for format_, each in PACKED_TENSORS.items():
        if format_ in formats and tensors * each > MOST_PACKED:
            rule = f"must not contain {format_} if the model has more than {MOST_PACKED // each} tensors to prune"
            raise ConfigError(FORMATS, rule, tensors, "Use the format dense.")


def _require_prune_fit(model: Dimensions, config: PruneConfig) -> None:
    if config.text_users:
        require_within("tokens", config.tokens, model.context)
    blocks = enumerate(model.blocks)
    require_divisible(config.pattern, ((f"block {number}", each.cols) for number, block in blocks for each in block))
    target_sparsity(config, parameters=model.parameters, targets=model.targets)
    require_own_keys(config, shares_keys=model.shares_keys)


def _require_repair_fit(model: Dimensions, config: RepairConfig) -> None:
    require_within("sequence_tokens", config.sequence_tokens, model.context)
    shapes = Counter[Shape]()
    for block in model.blocks:
        for matrix in block:
            shapes[matrix.rows, matrix.cols] += matrix.count
    if config.method in SIZES:
        base_rank(shapes, config)
    if config.method is RepairMethod.LORA_REPRUNE:
        require_separate_experts(config, "those of this model" if model.stacked else None)
    if config.method not in SIZES and (config.swap_tokens or not config.trains_all):
        require_positions(max(shapes, key=math.prod))
    if config.norms_and_biases:
        require_vectors(model.vectors)


def require_teacher_fit(model: Mapping[str, int | None], teacher: Mapping[str, int | None]) -> None:
    """Raise ConfigError if the sizes of a teacher differ from the pruned model's. Both have the sizes by name."""
    for name, own in model.items():
        if teacher[name] != own:
            rule = f"must have the {name} of the pruned model, {own}"
            way_out = "Use the original model, from before pruning."
            raise ConfigError("teacher", rule, str(teacher[name]), way_out, lead="it has")


def require_within(field: str, tokens: int, context: int | None) -> None:
    """Raise ConfigError if a window of `tokens` tokens is longer than the context of the model; None is unknown."""
    if context is not None and tokens > context:
        rule = f"must be at most {context}, the context length of the model"
        raise ConfigError(field, rule, tokens, f"Use {context} or less, or a model with a longer context.")


def require_own_keys(config: PruneConfig, *, shares_keys: bool) -> None:
    """Raise ConfigError if pruning needs gradients, and blocks use keys and values of other blocks.

    Blocks run one by one, so no gradients flow through these keys and values.
    """
    if shares_keys and config.resolved_allocation is Allocation.CURVATURE and not config.keeps_zeros:
        rule = "must be uniform if blocks of the model use keys and values of other blocks"
        raise ConfigError("allocation", rule, str(config.allocation), "Use uniform.")


def require_divisible(pattern: Pattern, inputs: Iterable[tuple[str, int]]) -> None:
    """Raise ConfigError if the M of an N:M pattern does not divide the number of inputs of every linear.

    `inputs` has the place and the number of inputs of each linear.
    """
    for place, cols in inputs:
        if cols % pattern.of:
            rule = (
                f"must have an M that divides the number of inputs of every linear layer, such as the {cols} of {place}"
            )
            raise ConfigError("pattern", rule, str(pattern), "Choose another pattern, or unstructured.")


def target_sparsity(config: PruneConfig, *, parameters: int, targets: int) -> float:
    """Return the sparsity that the pruned linears must have to give the requested sparsity.

    `parameters` is the number of weights of the model, and `targets` is the number of weights of these linears. Raises
    ConfigError if pruning the linears alone cannot reach the sparsity, which is possible with `sparsity_of: model`.
    """
    if config.sparsity_of is SparsityOf.TARGETS:
        return config.sparsity
    sparsity = config.sparsity * parameters / targets
    if sparsity > MOST_SPARSE:
        most = math.floor(MOST_SPARSE * targets / parameters * 1e4) / 1e4
        rule = (
            f"must be at most {most} for this model, because its linear layers have {targets / parameters:.1%} of its"
            " parameters"
        )
        way_out = "Lower the sparsity, or set sparsity_of to targets."
        raise ConfigError("sparsity", rule, config.sparsity, way_out)
    return sparsity


def _low_rank(shape: Shape, rank: int) -> int:
    """Return the number of entries of the matrices A (rank, cols) and B (rows, rank)."""
    return rank * sum(shape)


def _scaling(shape: Shape, rank: int) -> int:
    """Return the number of entries of alpha (rank, cols) and beta (rows); 0 for rank 0."""
    rows, cols = shape
    return rank * cols + rows if rank else 0


SIZES: Mapping[RepairMethod, Size] = {
    RepairMethod.MASKED_LORA: _low_rank,
    RepairMethod.LORA_REPRUNE: _low_rank,
    RepairMethod.SPP: _scaling,
}
"""Number of trained values of the low-rank methods."""


def base_rank(shapes: Mapping[Shape, int], config: RepairConfig) -> tuple[int, int]:
    """Return the largest rank that all linears can have, and the number of values that is left for higher ranks.

    `shapes` has the number of linears of each shape. All linears together may train `density` times the number of their
    weights. Raises ConfigError if that is less than half of the values that rank 1 takes in the largest linear, or if a
    linear may get a rank that is not below both sides of its matrix.
    """
    size = SIZES[config.method]
    count = round(config.trained_fraction * sum(number * rows * cols for (rows, cols), number in shapes.items()))

    def values(rank: int) -> int:
        return sum(number * size(shape, rank) for shape, number in shapes.items())

    rank = bisect_right(range(1, MOST_VALUES), count, key=values)
    left = count - values(rank)
    if not rank and 2 * left < max(size(shape, 1) for shape in shapes):
        rule = f"must give at least one linear layer rank 1 with {config.method}"
        way_out = "Increase it, or choose a method that trains individual weights, such as seft."
        raise ConfigError("density", rule, config.density, way_out)
    highest, (rows, cols) = rank + (left > 0), min(shapes, key=lambda shape: (min(shape), shape))
    if highest >= min(rows, cols):
        rule = (
            f"must give every linear layer a rank below both sides of its matrix with {config.method}; one of"
            f" {rows} x {cols} may get {highest}"
        )
        raise ConfigError("density", rule, config.density, "Lower it, or choose masked_full.")
    return rank, left


def ranks(shapes: Mapping[str, Shape], config: RepairConfig) -> dict[str, int]:
    """Return a rank per linear, so that all together train `density` times the number of their weights.

    All linears get the largest common rank that fits. Some of them, spread evenly, get one rank more. The total differs
    from the exact number by at most half of the values of one rank in one linear. If rank 1 does not fit everywhere,
    some linears get rank 0. Raises the errors of `base_rank`.
    """
    size = SIZES[config.method]
    rank, left = base_rank(Counter(shapes.values()), config)
    steps = {name: size(shape, rank + 1) - size(shape, rank) for name, shape in shapes.items()}
    whole = sum(steps.values())
    result, due = dict.fromkeys(shapes, rank), 0
    for name, step in steps.items():
        due += step * left
        if 2 * due >= step * whole:
            result[name] += 1
            due -= step * whole
    return result


def require_positions(shape: Shape) -> None:
    """Raise ConfigError if a linear is too large for the positions of its weights."""
    if math.prod(shape) > MOST_WEIGHTS:
        rule = f"must have at most {MOST_WEIGHTS} weights in each linear layer, because positions are int32"
        raise ConfigError("model", rule, shape, "Choose a smaller model.", lead="one has the shape")


def require_separate_experts(config: RepairConfig, stacked: str | None) -> None:
    """Raise ConfigError if there are stacked experts, and the method cannot train a matrix of a stack.

    `stacked` names experts whose matrices are in one parameter. It is None if there are none.
    """
    if stacked is not None:
        rule = f"must support stacked experts, such as {stacked}, which PEFT cannot adapt"
        raise ConfigError("method", rule, str(config.method), "Choose another method.")


def require_vectors(values: int) -> None:
    """Raise ConfigError if norms and biases are to be trained and the model has none, so `values` is 0."""
    if not values:
        rule = "must be off for a model without norm weights and biases"
        raise ConfigError("norms_and_biases", rule, True, "Leave it out.")
