"""DSnoT (Zhang et al. 2024, arXiv 2310.08915): swap pruned and remaining weights to reduce the mean error of each row.

Refines the mask that any other pruner chose, without training. Two things are ours. First, weights that the other
pruner corrected keep their corrections. Second, the squared error can grow while the mean error falls. So every swap
must lower the mean error, and a row is restored if its squared error over the calibration tokens grew.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.prune.pruner import Pruner
from seft.prune.statistics import Batch, Gram, Norms

CYCLES = 50

Weight = Float[Tensor, "rows cols"]
PerColumn = Float[Tensor, "cols"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Mean, variance and l2 norm of each input column, over all calibration tokens."""

    mean: PerColumn
    variance: PerColumn
    norms: PerColumn


class DSnoT:
    """Runs another pruner and refines the mask that it chose."""

    def __init__(self, weight: Weight, inner: Pruner, pattern: Pattern) -> None:
        self._weight, self._inner, self._pattern = weight, inner, pattern
        self._gram, self._norms = Gram(), Norms(weight)
        self._sum, self._tokens = torch.zeros(weight.shape[1], device=weight.device), 0

    def observe(self, batch: Batch) -> None:
        """Add a batch of the linear's inputs to the statistics, also to those of the other pruner."""
        self._inner.observe(batch)
        self._gram.observe(batch)
        self._norms.observe(batch)
        rows = batch.rows
        self._sum += rows.sum(0)
        self._tokens += len(rows)

    def prune(self) -> Weight:
        """Return the pruned weight matrix with the refined mask.

        Raises PruneError if the other pruner raises it, or if the inputs were missing or not finite.
        """
        norms, hessian = self._norms.norms(), self._gram.hessian()
        dense, pruned = self._weight.float(), self._inner.prune().float()
        del self._inner, self._gram  # They keep what the other pruner computed from the Hessian.
        mean = self._sum / self._tokens
        variance = norms.square() / self._tokens - mean.square()
        refined = refine(dense, pruned, Columns(mean, variance, norms), self._pattern)
        worse = _squared_error(refined - dense, hessian) > _squared_error(pruned - dense, hessian)
        return torch.where(worse[:, None], pruned, refined).to(self._weight.dtype)


def refine(dense: Weight, pruned: Weight, columns: Columns, pattern: Pattern = UNSTRUCTURED) -> Weight:
    """Return `pruned` after at most 50 swaps per row, each of which lowers the mean error (sections 3.2 and 3.3).

    A swap restores one pruned weight and prunes another. The restored weight lowers the mean error most, relative to
    the variance of its input. The newly pruned weight has the smallest `|W| * norm` of all weights whose removal lowers
    the error, or, in an N:M pattern, of all weights in the group of the restored weight. Zeros of `dense` are never
    restored, and no weight moves twice.
    """
    mean, refined = columns.mean, pruned.clone()
    gain_of, error = mean / columns.variance.clamp_min(1e-12), ((pruned - dense) @ mean)[:, None]
    free, active = dense != 0, torch.ones_like(error, dtype=torch.bool)
    for _ in range(CYCLES):
        direction = -error.sign()
        grow = (direction * dense * gain_of).masked_fill(~free | (refined != 0), -torch.inf)
        gain, grown = grow.max(1, keepdim=True)
        loss = (refined.abs() * columns.norms).masked_fill(~free | (refined == 0), torch.inf)
        if pattern.grouped:
            loss = loss.masked_fill(~_same_group(grown, pattern, loss), torch.inf)
        else:
            loss = loss.masked_fill(direction * refined * mean >= 0, torch.inf)
        least, lost = loss.min(1, keepdim=True)
        after = error + _at(dense, grown) * mean[grown] - _at(refined, lost) * mean[lost]
        active = active & (gain > 0) & least.isfinite() & (after.abs() < error.abs())
        if not active.any():
            break
        _put(refined, lost, torch.zeros_like(error), active)
        _put(refined, grown, _at(dense, grown), active)
        for moved in (lost, grown):
            free.scatter_(1, moved, free.gather(1, moved) & ~active)
        error = torch.where(active, after, error)
    return refined


def _same_group(column: Tensor, pattern: Pattern, like: Weight) -> Bool[Tensor, "rows cols"]:
    groups = torch.arange(like.shape[1], device=like.device) // pattern.of
    return groups == column // pattern.of


def _at(matrix: Weight, column: Tensor) -> Float[Tensor, "rows 1"]:
    return matrix.gather(1, column)


def _put(matrix: Weight, column: Tensor, value: Tensor, where: Bool[Tensor, "rows 1"]) -> None:
    matrix.scatter_(1, column, torch.where(where, value, _at(matrix, column)))


def _squared_error(difference: Weight, hessian: Float[Tensor, "cols cols"]) -> Float[Tensor, "rows"]:
    return ((difference @ hessian) * difference).sum(1)
