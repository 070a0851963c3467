"""Data parallelism: several processes repair one model together, each on its part of every micro-batch.

They are the processes of `torch.distributed`. If it is not initialised, there is one process, and these functions
change nothing. Every process has the same state, and the whole model unless `seft.repair.shards` splits it. Gradients
are summed over all processes. So all processes take the same steps and decisions, like one process that reads the whole
micro-batches.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

SENT_TOGETHER = 1 << 22
"""Largest number of values in a group of tensors that are copied and sent together."""


def process_count() -> int:
    """Return the number of processes that repair the model."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is the first process, or the only one."""
    return process_count() == 1 or dist.get_rank() == 0


def own_windows() -> slice:
    """Return the slice of a micro-batch's windows that this process reads."""
    return slice(dist.get_rank(), None, process_count()) if process_count() > 1 else slice(None)


def sum_over_processes(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the sum of `tensor` over all processes, with the same bits in each. May change `tensor` in place.

    All processes must call this function in the same order.
    """
    if process_count() > 1:
        tensor = tensor.contiguous()
        dist.all_reduce(tensor)
    return tensor


def sum_each_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes. Many small tensors are sent together, in a copy."""
    if process_count() == 1:
        return
    for group in groups([tensor.numel() for tensor in tensors], SENT_TOGETHER):
        part = tensors[group]
        flat = sum_over_processes(torch.cat([tensor.flatten() for tensor in part]) if len(part) > 1 else part[0])
        for tensor, piece in zip(part, torch.split(flat.view(-1), [tensor.numel() for tensor in part]), strict=True):
            tensor.copy_(piece.view(tensor.shape))


def groups(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield slices that together cover the sizes. The sum of a slice is at most `most`, unless one size is larger."""
    first = total = 0
    for place, size in enumerate(sizes):
        if total and total + size > most:
            yield slice(first, place)
            first, total = place, 0
        total += size
    yield slice(first, len(sizes))


def broadcast(value: Any) -> Any:
    """Return the value that the first process gives, in every process. The values of the other processes are ignored.

    All processes must call this function in the same order. They trust each other, because the value is pickled.
    """
    if process_count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


@torch.no_grad()
def broadcast_weights(model: Any) -> None:
    """Replace the parameters of `model` by the ones of the first process. All processes must call this function."""
    if process_count() > 1:
        for parameter in model.parameters():
            weight = parameter.contiguous()
            dist.broadcast(weight, src=0)
            parameter.copy_(weight)
