"""A weight, its inputs, and a pruner on them: what the tests of single linears share."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seft.config import PruneConfig, PruneMethod
from seft.prune.allocation import uniform_zeros
from seft.prune.methods import make_pruner
from seft.prune.statistics import Batch

WIDTH = 128  # columns per mask in SparseGPT


def make_weight(rows: int, cols: int, seed: int = 0) -> Float[Tensor, "rows cols"]:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, cols: int, seed: int = 1) -> Float[Tensor, "tokens cols"]:
    """Return inputs with correlated columns of different sizes, like activations."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / math.sqrt(cols)
    sizes = torch.randn(cols, generator=generator).exp()
    return (
        torch.randn(tokens, cols, generator=generator) @ mixing + torch.randn(tokens, 1, generator=generator)
    ) * sizes


def prune(
    weight: Float[Tensor, "rows cols"],
    inputs: Float[Tensor, "tokens cols"],
    method: PruneMethod,
    sparsity: float,
    **more: Any,
) -> Tensor:
    config = PruneConfig(sparsity, method, **more)
    pruner = make_pruner(weight, uniform_zeros(weight.shape, sparsity, config), config)
    for window in inputs.chunk(4):
        pruner.observe(Batch(window[None]))
    return pruner.prune()
