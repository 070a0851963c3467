"""Prunes a model one decoder block after another. Each block gets the outputs of the pruned blocks before it.

Statistics are float32 and are kept for one block at a time. The pruners decide which weights become zero.
`seft.prune.allocation` decides how many.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seft.config import Allocation, PruneConfig, PruneMethod
from seft.data.text import require_known_tokens
from seft.errors import PruneError
from seft.fit import require_divisible, require_own_keys, target_sparsity
from seft.models.products import Handler, Inputs, Outputs, Product, intercepted_products
from seft.models.targets import Target, block_linears, decoder_blocks, target_linears
from seft.prune import allocation, alphapruning, curvature, owl
from seft.prune.curvature import Curvature, measure
from seft.prune.methods import make_pruner
from seft.prune.pruner import Pruner
from seft.prune.statistics import Batch, Norms
from seft.prune.walk import Runs, Walk, Windows
from seft.report import Phase, Reporter, Unseen, silent

GRADIENTS = 1.5
"""Work of the gradients of a window, relative to the two passes that a window makes while blocks are pruned."""


@torch.no_grad()
def prune_model(
    model: Any,
    calibration: Windows,
    config: PruneConfig,
    report: Reporter = silent,
    *,
    device: str | None = None,
    zeros: Sequence[Mapping[str, int]] | None = None,
) -> None:
    """Prune every target (a linear layer that is pruned) of `model` in place.

    One block at a time is on `device`; None means the model's own device. `calibration` has the token ids of the
    windows (sequences of equal length). `zeros` gives the number of zeros of each target per block, and replaces the
    numbers that follow from `config`. Existing zeros stay. An expert that no calibration token reached is pruned by
    magnitude [ours].

    Raises ConfigError if the pattern or the sparsity does not fit the model. Raises PruneError with the name of a
    target if the statistics of its inputs cannot be used; the blocks before it are then already pruned.
    """
    require_known_tokens(calibration, model)
    blocks = decoder_blocks(model)
    targets = [block_linears(block) for block in blocks]
    require_divisible(config.pattern, _inputs(targets))
    shared = getattr(model.config.get_text_config(), "num_kv_shared_layers", 0)
    require_own_keys(config, shares_keys=bool(shared))
    text = calibration if config.text_users else _token(targets, calibration)
    read = text[: config.curvature_windows]
    passes = 2 if config.allocation in {Allocation.OWL, Allocation.ALPHAPRUNING} and not zeros else 1
    gradients = math.ceil(GRADIENTS * len(blocks) * len(read) / max(1, len(text)))
    walk = Walk(
        model, torch.device(device) if device else model.device, report, Phase.PRUNING, passes, gradients=gradients
    )
    curvatures = measure(walk, targets, read) if len(read) else []
    counts = zeros or _zeros(model, targets, config, walk, text, curvatures=curvatures)

    def prune(number: int, runs: Runs) -> None:
        factors = {name: each.row_factors() for name, each in curvatures[number].items()} if curvatures else {}
        unseen = _prune_block(number, targets[number], counts[number], config, runs, factors=factors)
        if unseen:
            report(Unseen(number, unseen))

    walk(text, prune)
    walk.report_progress()


@torch.no_grad()
def final_zeros(model: Any, calibration: Windows, config: PruneConfig) -> dict[str, int]:
    """Return how many zeros each target of `model` gets by `config`, by the names of `target_linears`.

    For models whose sparsity rises while they train. `calibration` is read if the allocation needs text. Raises
    ConfigError if the pattern or the sparsity does not fit the model.
    """
    targets = [block_linears(block) for block in decoder_blocks(model)]
    require_divisible(config.pattern, _inputs(targets))
    walk = Walk(model, model.device, silent, Phase.PRUNING)
    counts = _zeros(model, targets, config, walk, calibration)
    return dict(zip(target_linears(model), (count for of_block in counts for count in of_block.values()), strict=True))


def _token(targets: Sequence[Mapping[str, Target]], calibration: Windows) -> Windows:
    """Return the windows for pruners that need no text: one token if a parameter stacks several experts, else nothing.

    Stacked experts must run once, because only their matrix products show whether the weight matrices are laid out as
    assumed. If they are not, the run raises SourceError.
    """
    stacked = any(target.number is not None for of_block in targets for target in of_block.values())
    return calibration.new_zeros(int(stacked), 1)


def _inputs(targets: Sequence[Mapping[str, Target]]) -> Iterator[tuple[str, int]]:
    """Yield the place and the number of inputs of every target."""
    for number, of_block in enumerate(targets):
        for name, target in of_block.items():
            yield f"block {number}, {name}", target.shape[1]


def _zeros(
    model: Any,
    targets: Sequence[Mapping[str, Target]],
    config: PruneConfig,
    walk: Walk,
    text: Windows,
    *,
    curvatures: Sequence[Mapping[str, Curvature]] = (),
) -> list[dict[str, int]]:
    """Return the number of zeros that each target gets, one mapping per block.

    `curvatures` is the result of `measure` for the allocation `curvature`.
    """
    sizes = [[math.prod(target.shape) for target in of_block.values()] for of_block in targets]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sparsity = target_sparsity(config, parameters=parameters, targets=sum(map(sum, sizes)))
    counts = [
        [allocation.uniform_zeros(target.shape, sparsity, config) for target in of_block.values()]
        for of_block in targets
    ]
    total = sum(map(sum, counts))
    measures: list[float] = []
    match config.resolved_allocation:
        case Allocation.CURVATURE:
            counts = curvature.allocate(curvatures, counts, walk.report_progress)
        case Allocation.OWL:
            walk(text, lambda number, runs: measures.append(_outlier_ratio(number, targets[number], runs)))
            counts = allocation.allocate_by_block(sizes, total, owl.block_sparsities(measures, sparsity))
        case Allocation.ALPHAPRUNING:
            walk(text[:0], lambda number, _: measures.append(_exponent(targets[number])))
            counts = allocation.allocate_by_block(sizes, total, alphapruning.block_weights(measures))
    return [dict(zip(of_block, of_counts, strict=True)) for of_block, of_counts in zip(targets, counts, strict=True)]


def _outlier_ratio(number: int, targets: Mapping[str, Target], runs: Runs) -> float:
    norms = {name: Norms(target.weight) for name, target in targets.items()}
    reached = _observe(targets, norms, runs)
    scored = []
    for name in reached:
        with _named(number, name):
            scored.append((targets[name].weight, norms[name].norms()))
    return owl.outlier_ratio(scored)


@contextmanager
def _named(number: int, name: str) -> Iterator[None]:
    """Name the block and the linear in a PruneError."""
    try:
        yield
    except PruneError as error:
        raise PruneError(f"block {number}, {name}: {error}") from error


def _exponent(targets: Mapping[str, Target]) -> float:
    return alphapruning.block_alpha(target.weight for target in targets.values())


def _prune_block(
    number: int,
    targets: Mapping[str, Target],
    zeros: Mapping[str, int],
    config: PruneConfig,
    runs: Runs,
    *,
    factors: Mapping[str, Tensor | None],
) -> int:
    """Run the block with one pruner per target, which observes the inputs of the target. Then prune each target.

    `factors` has the row factors of each target by name (`Rule`). Returns how many targets had no inputs because they
    belong to experts that no token reached.
    """
    pruners = {
        name: make_pruner(target.weight, zeros[name], config, factors.get(name)) for name, target in targets.items()
    }
    reached = _observe(targets, pruners, runs)
    unseen = {name for name, target in targets.items() if config.text_users and target.expert} - set(reached)
    for name, target in targets.items():
        # Free each pruner after use: its Hessian may be larger than the weight.
        pruner = pruners.pop(name)
        if name in unseen:
            pruner = _by_magnitude(target.weight, zeros[name], config)
        with _named(number, name):
            target.weight.copy_(pruner.prune())
    return len(unseen)


def _by_magnitude(weight: Float[Tensor, "rows cols"], zeros: int, config: PruneConfig) -> Pruner:
    magnitude = PruneConfig(config.sparsity, PruneMethod.MAGNITUDE, config.pattern, compare=config.compare)
    return make_pruner(weight, zeros, magnitude)


def _observe(targets: Mapping[str, Target], watchers: Mapping[str, Pruner | Norms], runs: Runs) -> list[str]:
    """Run a block so that each target's inputs go to its watcher.

    Consecutive targets that get the same tensor share a batch, so sums over its tokens are computed once. Returns the
    names of the targets that tokens reached, in the block's order.
    """
    reached: set[str] = set()
    latest: Batch | None = None

    def handler(name: str) -> Handler:
        def handle(inputs: Inputs, product: Product) -> Outputs:
            nonlocal latest
            if inputs.numel():
                reached.add(name)
                latest = latest if latest and latest.contains(inputs) else Batch(inputs)
                watchers[name].observe(latest)
            return product(inputs)

        return handle

    with intercepted_products({target: handler(name) for name, target in targets.items()}):
        for run in runs:
            run()
    return [name for name in targets if name in reached]
