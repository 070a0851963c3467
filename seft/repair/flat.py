"""One optimizer step for many linears: their active positions are slices of common buffers.

A linear has few active positions, so most of the time of its own optimizer step would be the overhead of 25 operations.
Every operation works on each value alone, so the results do not depend on which values share a buffer.
"""

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from seft.repair import optimizer
from seft.repair.active import Active, in_one_buffer
from seft.repair.linear import RepairedLinear

CACHED, CHUNK = 1 << 16, 1 << 24
"""Number of positions that take a step at a time: on a CPU, so that the copies fit its cache, and on other devices."""


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
        most = CACHED if self._whole.indices.device.type == "cpu" else CHUNK
        start = 0
        for group in _groups(list(map(len, self._slices)), most):
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


def _groups(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield slices that together cover the sizes. A slice of several sizes has a sum of at most `most`."""
    first = total = 0
    for place, size in enumerate(sizes):
        if place > first and total + size > most:
            yield slice(first, place)
            first = place
            total = 0
        total += size
    yield slice(first, len(sizes))
