"""Several processes that repair one model together: each reads its share of every micro-batch, and all sums are whole.

They are those of `torch.distributed`, where it was started; without it there is one, and nothing here does anything.
Every process holds the whole model and the same state. Gradients are summed over all of them, so that each takes the
same steps and the same decisions, and they are those of one process with the whole micro-batches.
"""

import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from seft.config import RepairConfig
from seft.errors import ConfigError


def processes() -> int:
    """How many work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def require_same_config(config: RepairConfig) -> None:
    """ConfigError unless every process gets as many windows of each micro-batch as every other."""
    sizes = {"batch_tokens": config.batch_tokens // config.sequence_tokens, "micro_batch": config.micro_batch}
    for field, windows in sizes.items():
        if windows % processes():
            rule = f"must be a multiple of the number of processes, {processes()}, in windows"
            raise ConfigError(field, rule, windows, "Every process reads as many windows as the next.")


def mine() -> slice:
    """Which windows of a micro-batch this process reads."""
    return slice(dist.get_rank(), None, processes()) if processes() > 1 else slice(None)


def summed(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """The sum over all processes, the same bits in each; it may be made in place. All must ask in the same order."""
    if processes() > 1:
        tensor = tensor.contiguous()
        dist.all_reduce(tensor)
    return tensor
