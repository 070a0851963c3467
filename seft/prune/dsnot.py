"""DSnoT (Zhang et al. 2024, arXiv 2310.08915): entries change places with pruned ones until rows err less on average.

It goes over the mask of any pruner, without training. Two things are ours: where a pruner has also corrected weights,
they keep their corrections; and since the mean error alone can fall while the squared error grows, a swap must lower
the former, and a row whose squared error over the calibration tokens has grown is given back as it was.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.prune.pruner import Pruner
from seft.prune.statistics import Gram, Norms

CYCLES = 50

Weight = Float[Tensor, "rows cols"]
PerColumn = Float[Tensor, "cols"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Of each input column over all tokens: mean, variance, l2 norm."""

    mean: PerColumn
    variance: PerColumn
    norms: PerColumn


class DSnoT:
    """Lets another pruner prune, and refines its mask."""

    def __init__(self, weight: Weight, inner: Pruner, pattern: Pattern) -> None:
        self._weight, self._inner, self._pattern = weight, inner, pattern
        self._gram, self._norms = Gram(weight), Norms(weight)
        self._sum, self._tokens = torch.zeros(weight.shape[1], device=weight.device), 0

    def observe(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Show it to the other pruner too."""
        self._inner.observe(inputs)
        self._gram.observe(inputs)
        self._norms.observe(inputs)
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self._sum += rows.sum(0)
        self._tokens += len(rows)

    def prune(self) -> Weight:
        """The refined weight; PruneError where the other pruner has one, or the inputs were not finite or none."""
        norms, hessian = self._norms.norms(), self._gram.hessian()
        dense, pruned = self._weight.float(), self._inner.prune().float()
        mean = self._sum / self._tokens
        variance = norms.square() / self._tokens - mean.square()
        refined = refine(dense, pruned, Columns(mean, variance, norms), self._pattern)
        worse = _squared_error(refined - dense, hessian) > _squared_error(pruned - dense, hessian)
        return torch.where(worse[:, None], pruned, refined).to(self._weight.dtype)


def refine(dense: Weight, pruned: Weight, columns: Columns, pattern: Pattern = UNSTRUCTURED) -> Weight:
    """At most 50 swaps in every row, each with a smaller mean error of the row than before (sections 3.2 and 3.3).

    Grown is what lowers it most for the variance that it brings; pruned is what lowers it and has the least
    `|W| * norm`, or in an N:M pattern the least of the grown one's group. What was zero in `dense` is never grown,
    and no entry moves twice.
    """
    mean, refined = columns.mean, pruned.clone()
    gain_of, error = mean / columns.variance.clamp_min(1e-12), ((pruned - dense) @ mean)[:, None]
    free, going = dense != 0, torch.ones_like(error, dtype=torch.bool)
    for _ in range(CYCLES):
        wanted = -error.sign()
        grow = (wanted * dense * gain_of).masked_fill(~free | (refined != 0), -torch.inf)
        gain, grown = grow.max(1, keepdim=True)
        loss = (refined.abs() * columns.norms).masked_fill(~free | (refined == 0), torch.inf)
        if pattern.grouped:
            loss = loss.masked_fill(~_same_group(grown, pattern, loss), torch.inf)
        else:
            loss = loss.masked_fill(wanted * refined * mean >= 0, torch.inf)
        least, lost = loss.min(1, keepdim=True)
        after = error + _at(dense, grown) * mean[grown] - _at(refined, lost) * mean[lost]
        going = going & (gain > 0) & least.isfinite() & (after.abs() < error.abs())
        if not going.any():
            break
        _put(refined, lost, torch.zeros_like(error), going)
        _put(refined, grown, _at(dense, grown), going)
        for moved in (lost, grown):
            free.scatter_(1, moved, free.gather(1, moved) & ~going)
        error = torch.where(going, after, error)
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
