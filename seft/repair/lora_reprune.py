"""LoRA of PEFT without a mask. At the end it is merged, which fills the zeros, and every linear is pruned again.

This is the LoRA* that the SEFT paper compares with (arXiv 2505.24037). The pruned weights do not change until the end.
The second pruning uses the settings of the first, calibrates on windows of the training text, and gives each linear its
former number of zeros.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seft.checkpoint.pruned_state import pack_bits, unpack_bits
from seft.errors import ConfigError
from seft.fit import ranks, require_separate_experts
from seft.models.targets import block_linears, decoder_blocks
from seft.prune.loop import prune_model
from seft.prune.mask import smallest_overall, zeros_first
from seft.repair import optimizer
from seft.repair.masked_lora import SCALE, LowRank
from seft.repair.method import Method, Work
from seft.repair.values import Values
from seft.report import Reporter
from seft.seeds import generator


class LoraReprune(Method):
    """Trains a PEFT adapter per target. The ranks are chosen so that all have the configured number of values together.

    Raises ConfigError if it is unknown how the model was pruned, or if the model stacks the matrices of its experts.
    """

    def __init__(self, work: Work) -> None:
        if work.pruned is None:
            way_out = "Give the settings that the model was pruned with, or choose another method."
            raise ConfigError("pruned", f"must be given for {work.config.method}, which prunes again", None, way_out)
        stacked = (name for name, target in work.targets.items() if target.number is not None)
        require_separate_experts(work.config, next(stacked, None))
        self._work, self._pruned = work, work.pruned
        self._windows = work.calibration()
        self._zeros = [
            {name: int((target.weight == 0).sum()) for name, target in block_linears(block).items()}
            for block in decoder_blocks(work.model)
        ]
        self._parameters, self._peft = _adapted(work)
        self._vectors = {name: Values.start(each.detach().view(-1)) for name, each in self._parameters.items()}
        self._grown = 0

    @property
    def trained_values(self) -> int:
        """Number of trained values: all entries of all adapters."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def grown_zeros(self) -> int:
        """Number of weights that were zero when pruning ended and are nonzero now."""
        return self._grown

    def take_gradients(self) -> list[Tensor]:
        """Return the accumulated gradient of each adapter matrix, and reset it."""
        gradients = []
        for parameter in self._parameters.values():
            gradient, parameter.grad = parameter.grad, None
            gradients.append((torch.zeros_like(parameter) if gradient is None else gradient).view(-1))
        return gradients

    def update(self, gradients: Sequence[Tensor], rate: float, _: float) -> None:
        """Take one optimizer step in each adapter matrix."""
        for vector, gradient in zip(self._vectors.values(), gradients, strict=True):
            optimizer.step(vector, gradient, rate, self._work.config.weight_decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter matrices and Adam's moments."""
        return {
            f"{name}.{part}": tensor for name, each in self._vectors.items() for part, tensor in each.tensors().items()
        }

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Replace the adapter matrices and Adam's moments by saved ones."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def finish(self, report: Reporter) -> None:
        """Merge the adapters, and prune each linear to its former number of zeros.

        Also counts the former zeros that are nonzero now, for `grown_zeros`.
        """
        targets = self._work.targets
        # On the host and packed, because the second pruning needs more memory than a step.
        former = {name: pack_bits(target.weight == 0) for name, target in targets.items()}
        self._peft.merge_and_unload()
        prune_model(self._work.model, self._windows, self._pruned, report, zeros=self._zeros)
        for name, target in targets.items():
            zeros = unpack_bits(former[name], target.weight.shape[1]).to(target.weight.device)
            # With a pattern, pruning may leave more nonzeros than before, because the dense model had zeros.
            score = zeros_first(target.weight.abs(), target.weight)
            target.weight.masked_fill_(smallest_overall(score, int(zeros.sum())), 0.0)
            self._grown += int((zeros & (target.weight != 0)).sum())


def _adapted(work: Work) -> tuple[dict[str, torch.nn.Parameter], Any]:
    """Add PEFT adapters to the model. Returns the adapter matrices by "target/A" and "target/B", and PEFT's model.

    The initial values are drawn as in `masked_lora`. PEFT would draw them from the global generator of torch.
    """
    from peft import LoraConfig, get_peft_model

    shapes = work.shapes
    rank_of = {name: rank for name, rank in ranks(shapes, work.config).items() if rank}
    config = LoraConfig(
        target_modules=list(rank_of),
        rank_pattern=rank_of,
        alpha_pattern={name: SCALE * rank for name, rank in rank_of.items()},
    )
    with warnings.catch_warnings():
        # PEFT detects that a Conv1D is stored transposed, and warns.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        handle = get_peft_model(work.model, config)
    parameters: dict[str, torch.nn.Parameter] = {}
    for name, rank in rank_of.items():
        module: Any = work.model.get_submodule(name)
        halves = {"A": module.lora_A["default"].weight, "B": module.lora_B["default"].weight}
        first = LowRank(shapes[name], rank).initial(generator(work.config.seed, name))[: halves["A"].numel()]
        with torch.no_grad():
            halves["A"].copy_(first.view_as(halves["A"]))
        parameters |= {f"{name}/{half}": parameter for half, parameter in halves.items()}
    return parameters, handle
