"""Train few weights of each linear, drawn once and spread evenly over its nonzeros. Zeros stay zero.

This is SEFT without topology events, as a baseline. `seft.repair.seft_method` adds the events. The method `masked_full`
is the same with all nonzeros: full fine-tuning under the mask. Its optimizer state grows with the nonzeros.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from seft.repair import optimizer
from seft.repair.active import Active, in_one_buffer
from seft.repair.in_place import InPlaceMethod
from seft.repair.linear import RepairedLinear
from seft.repair.method import Work
from seft.repair.processes import groups
from seft.repair.published import WINDOWS
from seft.seeds import generator

CACHED, CHUNK = 1 << 16, 1 << 24
"""Number of positions that take a step at a time: on a CPU, so that the copies fit its cache, and on other devices."""


class FlatOptimizer:
    """Trains the active positions of several linears together, as slices of common buffers. They keep their order.

    A linear has few active positions, so most of the time of its own step would be the overhead of 25 operations. Each
    operation works on each value alone, so the results do not depend on which values share a buffer.
    """

    def __init__(self, linears: Sequence[RepairedLinear]) -> None:
        self._linears = linears
        self._slices: list[Active] = []
        self.gather()

    def gather(self) -> None:
        """Copy the active positions of all linears into new buffers if any linear has replaced its own."""
        lists = [linear.active for linear in self._linears]
        if self._slices and all(map(operator.is_, lists, self._slices)):
            return
        self._whole, self._slices = in_one_buffer(lists)
        self._sizes = torch.tensor([len(part) for part in lists], device=self._whole.indices.device)
        for linear, part in zip(self._linears, self._slices, strict=True):
            linear.adopt(part)

    def update(self, gradients: Sequence[Tensor], rate: float, weight_decay: float) -> None:
        """Take one optimizer step with the gradient of each linear, and write the values into the weight matrices."""
        self.gather()
        most = CACHED if self._whole.indices.device.type == "cpu" else CHUNK
        start = 0
        for group in groups(list(map(len, self._slices)), most):
            typical = torch.stack([linear.typical for linear in self._linears[group]])
            typical = typical.where(typical != 0, torch.inf)
            gradient = torch.cat(list(gradients[group]))
            typical = typical.repeat_interleave(self._sizes[group], output_size=len(gradient))
            for first in range(0, len(gradient), most):
                here = slice(first, min(first + most, len(gradient)))
                part = Active(*(each[start:][here] for each in self._whole.tensors().values()))
                optimizer.step(part, gradient[here], rate, weight_decay, typical[here])
            start += len(gradient)
        for linear in self._linears:
            linear.active.write(linear.weight)


class FixedMask(InPlaceMethod):
    """Trains the same active positions of each linear during the whole training."""

    def __init__(self, work: Work) -> None:
        config, pattern = work.config, work.pattern
        self.linears = {
            name: RepairedLinear(
                target, config.trained_fraction, generator(config.seed, name), pattern, WINDOWS[config.variant]
            )
            for name, target in work.targets.items()
        }
        super().__init__(work, self.linears)
        self._optimizer = FlatOptimizer(list(self.linears.values()))

    def before_step(self, _: int, /) -> None:
        """Free the buffers of the optimizer that an event or a resumption has made outdated."""
        self._optimizer.gather()

    def update(self, gradients: Sequence[Tensor], rate: float, _: float) -> None:
        """Take one optimizer step in all linears."""
        self._optimizer.update(gradients, rate, self.config.weight_decay)
