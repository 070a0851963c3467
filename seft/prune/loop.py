"""Prune a model block by block, each on the outputs of the pruned blocks before it.

Statistics live for one block and are float32. How a weight is judged is each pruner's own affair, and how many zeros
it gets is `seft.prune.allocation`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seft.config import Allocation, Pattern, PruneConfig, PruneMethod
from seft.data.text import require_known_tokens
from seft.errors import ConfigError, PruneError
from seft.models.products import Handler, Inputs, Outputs, Product, intercepted_products
from seft.models.targets import Target, block_linears, decoder_blocks
from seft.prune import allocation, alphapruning, owl
from seft.prune.methods import make_pruner, readers
from seft.prune.pruner import Pruner
from seft.prune.statistics import Norms
from seft.prune.walk import Runs, Walk, Windows
from seft.report import Phase, Reporter, Unseen, silent


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
    """Prune every target of `model` in place, one block at a time on `device` (None: the model's own).

    `zeros` says for each block how many each of its targets gets, where that is not to follow from `config`.

    Zeros that are there stay. ConfigError where the pattern or the asked share does not suit the model. PruneError
    names the target whose statistics do not let it go on; the blocks before it are pruned then. An expert that no
    calibration token reached is pruned by magnitude [ours].
    """
    require_known_tokens(calibration, model)
    blocks = decoder_blocks(model)
    targets = [block_linears(block) for block in blocks]
    _must_fit(targets, config.pattern)
    text = calibration if readers(config) else _token(targets, calibration)
    passes = 1 if zeros or config.allocation is Allocation.UNIFORM else 2
    walk = Walk(model, torch.device(device) if device else model.device, report, Phase.PRUNING, passes)
    counts = zeros or _zeros(model, targets, config, walk, text)

    def prune(number: int, runs: Runs) -> None:
        unseen = _prune_block(number, targets[number], counts[number], config, runs)
        if unseen:
            report(Unseen(number, unseen))

    walk(text, prune)
    walk.tell()


def _token(targets: Sequence[Mapping[str, Target]], calibration: Windows) -> Windows:
    """What a model is run on for pruners that read no text: one token where experts lie in one parameter, else nothing.

    Only their products tell whether its matrices are the ones that they are taken for: SourceError where not.
    """
    stacked = any(target.number is not None for of_block in targets for target in of_block.values())
    return calibration.new_zeros(int(stacked), 1)


def _must_fit(targets: Sequence[Mapping[str, Target]], pattern: Pattern) -> None:
    for number, of_block in enumerate(targets):
        for name, target in of_block.items():
            cols = target.weight.shape[1]
            if cols % pattern.of:
                rule = f"must divide the inputs of every linear layer; block {number}, {name} has {cols} of them"
                raise ConfigError("pattern", rule, str(pattern), "Take another pattern, or unstructured.")


def _zeros(
    model: Any, targets: Sequence[Mapping[str, Target]], config: PruneConfig, walk: Walk, text: Windows
) -> list[dict[str, int]]:
    """How many zeros each target of each block gets."""
    sizes = [[target.weight.numel() for target in of_block.values()] for of_block in targets]
    share = allocation.target_share(model, sizes, config)
    counts = [
        [allocation.uniform(target.weight.shape, share, config) for target in of_block.values()] for of_block in targets
    ]
    total = sum(map(sum, counts))
    found: list[float] = []
    match config.allocation:
        case Allocation.UNIFORM:
            pass
        case Allocation.OWL:
            walk(text, lambda number, runs: found.append(_outliers(targets[number], runs)))
            counts = allocation.by_block(sizes, total, owl.block_shares(found, share))
        case Allocation.ALPHAPRUNING:
            walk(text[:0], lambda number, _: found.append(_exponent(targets[number])))
            counts = allocation.by_block(sizes, total, alphapruning.block_weights(found))
    return [dict(zip(of_block, of_counts, strict=True)) for of_block, of_counts in zip(targets, counts, strict=True)]


def _outliers(targets: Mapping[str, Target], runs: Runs) -> float:
    norms = {name: Norms(target.weight) for name, target in targets.items()}
    reached = _look(targets, norms, runs)
    return owl.outliers([(targets[name].weight, norms[name].norms()) for name in reached])


def _exponent(targets: Mapping[str, Target]) -> float:
    return alphapruning.block_mean(target.weight for target in targets.values())


def _prune_block(
    number: int, targets: Mapping[str, Target], zeros: Mapping[str, int], config: PruneConfig, runs: Runs
) -> int:
    """Show the block's inputs to one pruner per target, then let each of them prune its own.

    Returns how many had to do without, because they belong to experts that no token came to.
    """
    pruners = {name: make_pruner(target.weight, zeros[name], config) for name, target in targets.items()}
    reached = _look(targets, pruners, runs)
    unseen = {name for name, target in targets.items() if readers(config) and target.expert} - set(reached)
    for name, target in targets.items():
        # popped: a Hessian is larger than the weight it serves
        pruner = pruners.pop(name)
        if name in unseen:
            pruner = _unseen(target.weight, zeros[name], config)
        try:
            target.weight.copy_(pruner.pruned())
        except PruneError as error:
            raise PruneError(f"block {number}, {name}: {error}") from error
    return len(unseen)


def _unseen(weight: Float[Tensor, "rows cols"], zeros: int, config: PruneConfig) -> Pruner:
    return make_pruner(weight, zeros, PruneConfig(config.sparsity, PruneMethod.MAGNITUDE, config.pattern))


def _look(targets: Mapping[str, Target], watchers: Mapping[str, Pruner | Norms], runs: Runs) -> list[str]:
    """Run a block with a watcher at each target; the names of those that tokens came to, in the block's order."""
    reached: set[str] = set()

    def showing(name: str) -> Handler:
        def handle(inputs: Inputs, product: Product) -> Outputs:
            if inputs.numel():
                reached.add(name)
                watchers[name].see(inputs)
            return product(inputs)

        return handle

    with intercepted_products({target: showing(name) for name, target in targets.items()}):
        for run in runs:
            run()
    return [name for name in targets if name in reached]
