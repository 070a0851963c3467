"""Data parallelism: several processes repair one model together, each on its part of every micro-batch.

The processes are those of `torch.distributed`. If it is not initialised, there is one process, and these functions
change nothing. Every process has the whole model and the same state. Gradients are summed over all processes, so all
take the same steps and decisions as one process with the whole micro-batches.
"""

import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from seft.config import RepairConfig
from seft.errors import ConfigError


def process_count() -> int:
    """Return the number of processes that repair the model."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def require_same_config(config: RepairConfig) -> None:
    """Raise ConfigError unless every process gets the same number of windows of each micro-batch.

    A window is a sequence of tokens.
    """
    sizes = {"batch_tokens": config.batch_tokens // config.sequence_tokens, "micro_batch": config.micro_batch}
    for field, windows in sizes.items():
        if windows % process_count():
            rule = f"must give a number of sequences that is a multiple of the number of processes, {process_count()}"
            raise ConfigError(
                field,
                rule,
                windows,
                "Change it, or the number of processes. Every process reads the same number of sequences.",
                lead="it gives",
            )


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
