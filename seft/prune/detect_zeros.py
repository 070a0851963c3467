"""Finds the zeros of a model that another tool pruned: how many each target has, and which N:M pattern they follow.

A target is a linear layer that is pruned.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.config import MOST_SPARSE, UNSTRUCTURED, Pattern, PruneConfig, PruneMethod
from seft.errors import ConfigError
from seft.models.targets import Target, target_linears
from seft.report import ZerosFound

MIN_SPARSITY = 0.01
"""Smallest fraction of zeros of a pruned model. A dense model has a few zeros by chance."""
GROUPS = (2, 4, 8, 16, 32)
"""Sizes of the groups of the patterns that are looked for. Each is twice the one before."""
MIN_FULL_GROUPS = 0.1
"""At least this fraction of the groups of a model with an N:M pattern has N nonzeros. In a model without a pattern, the
largest number of nonzeros in a group occurs in few groups."""


@torch.no_grad()
def find_zeros(model: Any) -> ZerosFound | None:
    """Return the zeros of a model, or None if it has fewer than the fraction `MIN_SPARSITY`."""
    targets = target_linears(model)
    counts = {name: int((target.weight == 0).sum()) for name, target in targets.items()}
    sizes = {name: math.prod(target.shape) for name, target in targets.items()}
    share = sum(counts.values()) / sum(sizes.values())
    if share < MIN_SPARSITY:
        return None
    shares = [counts[name] / sizes[name] for name in targets]
    pattern = _pattern(list(targets.values())) if all(shares) else UNSTRUCTURED
    return ZerosFound(share, min(shares), max(shares), len(shares), shares.count(0.0), str(pattern))


def config_of_zeros(config: PruneConfig, found: ZerosFound) -> PruneConfig:
    """Return the settings of pruning that describe the zeros. The seed is that of `config`, which has the sparsity 0.

    Raises ConfigError if the model has too many zeros.
    """
    if found.sparsity > MOST_SPARSE:
        rule = f"must have at most {MOST_SPARSE:.0%} zeros in its target linears"
        raise ConfigError("model", rule, f"{found.sparsity:.2%}", "Use a model with fewer zeros.", lead="it has")
    pattern = Pattern.parse(found.pattern)
    sparsity = pattern.sparsity(None if pattern.grouped else found.sparsity)
    return PruneConfig(sparsity, PruneMethod.MAGNITUDE, pattern, seed=config.seed)


def _pattern(targets: Sequence[Target]) -> Pattern:
    """Return the N:M pattern that the weight matrices of all targets follow, or `UNSTRUCTURED`.

    Of several patterns, the one with the most zeros is returned. Of equal ones, it is the one with the smallest groups.
    """
    groups = {size: torch.zeros(size + 1, dtype=torch.int64) for size in GROUPS}
    for target in targets:
        nonzeros = (target.weight != 0).to(torch.uint8)
        for size in GROUPS:
            if nonzeros.shape[1] % 2:  # this and all larger groups do not divide the inputs
                groups = {each: counts for each, counts in groups.items() if each < size}
                break
            nonzeros = nonzeros[:, ::2] + nonzeros[:, 1::2]
            if size in groups:
                groups[size] += nonzeros.flatten().bincount(minlength=size + 1).cpu()
    patterns = [Pattern(int(counts.nonzero().max()), size) for size, counts in groups.items()]
    found = [each for each in patterns if each.kept < each.of and _full(groups[each.of], each.kept) >= MIN_FULL_GROUPS]
    return max(found, key=lambda pattern: (pattern.sparsity(None), -pattern.of), default=UNSTRUCTURED)


def _full(groups: Int[Tensor, "counts"], kept: int) -> float:
    """Return the fraction of the groups that have exactly `kept` nonzeros."""
    return float(groups[kept] / groups.sum())
