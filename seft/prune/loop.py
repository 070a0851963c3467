"""Prune a model block by block, each on the outputs of the pruned blocks before it.

The model stays where it is; one block at a time is brought to the device, so a model larger than it can be pruned.
Statistics live for one block and are float32. How a weight is judged is each pruner's own affair.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seft.config import PruneConfig, PruneMethod
from seft.errors import PruneError
from seft.prune.capture import Hidden, capture
from seft.prune.magnitude import Magnitude
from seft.prune.sparsegpt import SparseGPT
from seft.prune.wanda import Wanda
from seft.report import Phase, Progress, Reporter, silent
from seft.targets import block_linears, decoder_blocks
from seft.text import must_be_known


@runtime_checkable
class Pruner(Protocol):
    """What every pruner of one linear can do."""

    needs_text: ClassVar[bool]

    def __init__(self, linear: nn.Linear, config: PruneConfig) -> None: ...

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Learn from inputs of the linear."""

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The weight to go on with."""


PRUNERS: dict[PruneMethod, type[Pruner]] = {
    PruneMethod.MAGNITUDE: Magnitude,
    PruneMethod.WANDA: Wanda,
    PruneMethod.SPARSEGPT: SparseGPT,
}


@torch.no_grad()
def prune_model(
    model: Any,
    calibration: Int[Tensor, "windows tokens"],
    config: PruneConfig,
    report: Reporter = silent,
    *,
    device: str | None = None,
) -> None:
    """Prune every target linear of `model` in place, one block at a time on `device` (None: the model's own).

    Zeros that are there stay. PruneError names the linear whose statistics do not let it go on; the blocks before it
    are pruned then.
    """
    blocks, pruner = decoder_blocks(model), PRUNERS[config.method]
    must_be_known(calibration, model)
    home = model.device
    place = torch.device(device) if device else home
    hidden, calls = capture(model, blocks, calibration) if pruner.needs_text else ([], [])
    for number, block in enumerate(blocks):
        report(Progress(Phase.PRUNING, number, len(blocks)))
        block.to(place)
        try:
            runs: Sequence[Callable[[], Hidden]] = [
                partial(window[number].run, block, state, place) for window, state in zip(calls, hidden, strict=True)
            ]
            _prune_block(number, block, partial(pruner, config=config), runs)
            hidden = [run() for run in runs]
        finally:
            block.to(home)
    report(Progress(Phase.PRUNING, len(blocks), len(blocks)))


def _prune_block(
    number: int, block: nn.Module, make: Callable[[nn.Linear], Pruner], runs: Sequence[Callable[[], Hidden]]
) -> None:
    """Show the block's inputs to one pruner per linear, then let each of them prune its own."""
    linears = block_linears(block)
    pruners = {name: make(linear) for name, linear in linears.items()}
    hooks = [linear.register_forward_pre_hook(_showing(pruners[name])) for name, linear in linears.items()]
    try:
        for run in runs:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    for name, linear in linears.items():
        try:
            # popped: a Hessian is larger than the weight it serves
            linear.weight.copy_(pruners.pop(name).pruned())
        except PruneError as error:
            raise PruneError(f"block {number}, {name}: {error}") from error


def _showing(pruner: Pruner) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        pruner.see(args[0])

    return hook
