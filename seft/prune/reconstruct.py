"""Block reconstruction after pruning: tune the remaining weights of a block towards the outputs of the dense block.

Attention is tuned first, then the MLP. A block that does not consist of these two modules is tuned as a whole. The
inputs come from the pruned model, after the blocks before it were reconstructed. Adam minimises the distance to the
outputs that the dense weights give for the same inputs. Only nonzeros of the pruned weights change, so every zero
stays. Sources: EBFT, Guo et al., arXiv 2402.12419; separate attention and MLP: arXiv 2510.14444.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import recursively_apply
from jaxtyping import Float, Int
from torch import Tensor, nn

from seft.config import PruneConfig
from seft.dtypes import master_dtype
from seft.models.targets import Hidden, Target, block_linears, decoder_blocks, hidden_state
from seft.prune.capture import Pool
from seft.prune.walk import Runs, Walk
from seft.report import Phase, Reconstructed, Reporter, silent
from seft.seeds import generator


@torch.no_grad()
def reconstruct(
    model: Any,
    dense: Any,
    calibration: Int[Tensor, "windows tokens"],
    config: PruneConfig,
    report: Reporter = silent,
    *,
    device: str | None = None,
) -> None:
    """Tune the remaining weights of the pruned `model` in place, one block at a time on `device`.

    `device` None means the model's own device. `dense` is the same model before pruning. `config` gives the epochs and
    the learning rate. If the error of a module did not fall, its pruned weights are restored [ours].
    """
    compute_device = torch.device(device) if device else model.device
    blocks, twins, home = decoder_blocks(model), decoder_blocks(dense), dense.device

    def visit(number: int, runs: Runs) -> None:
        block, twin = blocks[number], twins[number].to(compute_device)
        for name in _parts(block, runs):
            part = _Part(block.get_submodule(name), twin.get_submodule(name), runs, compute_device, home)
            before, after = part.tune(
                config, generator(config.seed, f"reconstruct {number} {name}"), walk.report_progress
            )
            report(Reconstructed(number, name or "block", before, after))
        twin.to(home)

    walk = Walk(model, compute_device, report, Phase.RECONSTRUCTING)
    walk(calibration, visit)
    walk.report_progress()


class _Part:
    """A module of a pruned block, its inputs per window, and the outputs of the same module of the dense model.

    Inputs and outputs are stored on `home`. One window at a time moves to `device`.
    """

    def __init__(
        self, module: nn.Module, twin: nn.Module, runs: Runs, device: torch.device, home: torch.device
    ) -> None:
        self._module, self._device = module, device
        pool = Pool()
        self._inputs = _inputs(module, runs, lambda tensor: pool(tensor.to(home)))
        self._expected = [self._output(number, twin).to(home) for number in range(len(self._inputs))]
        self._size = sum(float(expected.double().square().sum()) for expected in self._expected)
        self._weights = list({id(target.parameter): target.parameter for target in _targets(module)}.values())

    def error(self) -> float:
        """Return the squared distance to the outputs of the dense module, divided by their squared norm."""
        distance = sum(
            float((self._output(number, self._module) - expected.to(self._device)).double().square().sum())
            for number, expected in enumerate(self._expected)
        )
        return distance / self._size if self._size else 0.0

    def tune(self, config: PruneConfig, order: torch.Generator, heartbeat: Callable[[], None]) -> tuple[float, float]:
        """Tune the nonzero weights. Returns the errors before and after.

        `order` draws the order of the windows. `heartbeat` is called after each step and may raise an error to stop.
        """
        pruned = [weight.clone() for weight in self._weights]
        masks = [weight != 0 for weight in pruned]
        masters = [weight.to(master_dtype(weight.dtype), copy=True) for weight in pruned]
        before = self.error()
        adam = torch.optim.Adam(masters, lr=config.reconstruct_learning_rate)
        steps = config.reconstruct_epochs * len(self._expected)
        rate = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)
        for _ in range(config.reconstruct_epochs):
            for number in torch.randperm(len(self._expected), generator=order).tolist():
                for master, gradient, mask in zip(masters, self._gradients(number), masks, strict=True):
                    master.grad = gradient.to(master.dtype) * mask
                adam.step()
                rate.step()
                _write(self._weights, masters)
                heartbeat()
        after = self.error()
        if not after < before:
            _write(self._weights, pruned)
            return before, before
        return before, after

    @torch.enable_grad()
    def _gradients(self, number: int) -> Sequence[Tensor]:
        trainable = [weight.requires_grad for weight in self._weights]
        for weight in self._weights:
            weight.requires_grad_(True)
        expected = self._expected[number].to(self._device)
        distance = (self._output(number, self._module) - expected).float().square().sum() / self._size
        gradients = torch.autograd.grad(distance, self._weights, materialize_grads=True)
        for weight, before in zip(self._weights, trainable, strict=True):
            weight.requires_grad_(before)
        return gradients

    def _output(self, number: int, module: nn.Module) -> Hidden:
        args, kwargs = recursively_apply(lambda tensor: tensor.to(self._device), self._inputs[number])
        return hidden_state(module(*args, **kwargs))


def _targets(module: nn.Module) -> Sequence[Target]:
    return list(block_linears(module).values())


def _parts(block: nn.Module, runs: Runs) -> list[str]:
    """Return the names of attention and MLP: the two modules that contain the block's targets, each called once.

    Returns [""], which means the block itself, if the block does not consist of two such modules.
    """
    holders = {name: child for name, child in block.named_children() if _targets(child)}
    single = any(target.module is child for child in holders.values() for target in _targets(child))
    if (
        len(holders) == 2
        and not single
        and all(len(_inputs(child, runs[:1], Tensor.detach)) == 1 for child in holders.values())
    ):
        return list(holders)
    return [""]


def _inputs(
    module: nn.Module, runs: Runs, keep: Callable[[Tensor], Tensor]
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the arguments of `module` for each run of its block, with `keep` applied to every tensor."""
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = module.register_forward_pre_hook(
        lambda _, *arguments: inputs.append(recursively_apply(keep, arguments)), with_kwargs=True
    )
    try:
        for run in runs:
            run()
    finally:
        hook.remove()
    return inputs


def _write(weights: Sequence[Tensor], values: Sequence[Float[Tensor, "..."]]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
