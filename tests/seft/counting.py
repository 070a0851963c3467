"""Counts the zeros of a model in memory, to compare them with those of its files."""

from torch import Tensor, nn

from seft.checkpoint.counts import Count, Sparsity
from seft.models.targets import target_linears


def counted(model: nn.Module) -> Sparsity:
    """Return the counts of weights and zeros of a model in memory."""
    layers = {name: _zeros(target.weight) for name, target in target_linears(model).items()}
    # A tied weight has two names.
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values()
    none = Count(0, 0)
    return Sparsity(layers, sum(layers.values(), none), sum(map(_zeros, tensors), none))


def _zeros(tensor: Tensor) -> Count:
    return Count(int((tensor == 0).sum()), tensor.numel())
