"""One optimizer step for many linears: their active positions are slices of common buffers.

A linear has few active positions, so most of the time of its own optimizer step would be the overhead of 25 operations.
Every operation works on each value alone, so the results do not depend on which values share a buffer.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from seft.repair import optimizer
from seft.repair.active import Active, in_one_buffer
from seft.repair.linear import RepairedLinear


class FlatOptimizer:
    """Trains the active positions of several linears together. They keep their order."""

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
        typical = torch.stack([linear.typical for linear in self._linears])
        typical = typical.where(typical != 0, torch.inf)
        typical = typical.repeat_interleave(self._sizes, output_size=len(self._whole))
        optimizer.step(self._whole, torch.cat(list(gradients)), rate, weight_decay, typical)
        for linear in self._linears:
            linear.active.write(linear.weight)
