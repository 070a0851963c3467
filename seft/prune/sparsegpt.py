"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1): prune, and correct later columns for the error.

As in the published code, the mask is chosen over all rows for 128 columns at a time, or for one group of an N:M
pattern. It is chosen on the weights that earlier columns have already corrected, all in float32. Two things differ on
purpose. Exactly the requested number of entries is pruned (the published threshold prunes one more), and existing zeros
stay.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from seft.errors import PruneError
from seft.prune.mask import Rule, smallest_in_groups, smallest_overall
from seft.prune.pruner import Corrected

BLOCK = 128
GROUP = 16
"""Columns that are corrected one by one. The later columns of a block are corrected by one product after that."""
DAMPING_TRIES = (1, 10, 100)


class SparseGPT(Corrected):
    """Prunes the entries of one weight matrix with the smallest `W^2 / diag(U)^2`, and corrects later columns.

    U is the upper Cholesky factor of the inverse of the Hessian.
    """

    @override
    def solve(self, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        if self._dead and not self._rule.pattern.grouped:
            # Each stripe only gets its part of the zeros. So weights of inputs that are always zero become zero before.
            muted = weight[:, self._dead]
            others = int((weight == 0).sum()) - int((muted == 0).sum())
            count = min(muted.numel(), max(0, self._rule.zeros - others))
            weight[:, self._dead] = muted.masked_fill(smallest_overall(muted.abs(), count), 0.0)
        return prune_columns(weight, self._inputs.derived(inverse_factor, self._damping), self._rule)


def inverse_factor(hessian: Float[Tensor, "cols cols"], damping: float) -> Float[Tensor, "cols cols"]:
    """Return the upper Cholesky factor of the inverse of the damped Hessian.

    Zeros of the diagonal become ones. Damping adds `damping` times the mean of the diagonal to it. If the result has no
    factor, 10 times and then 100 times this damping is tried. Raises PruneError if that fails too.
    """
    diagonal = hessian.diagonal().masked_fill(hessian.diagonal() == 0, 1.0)
    for multiple in DAMPING_TRIES:
        shifted = diagonal + damping * multiple * diagonal.mean()
        # The factor of the matrix in reverse order is the inverse of the wanted one in reverse order.
        lower, failed = torch.linalg.cholesky_ex(hessian.diagonal_scatter(shifted).flip(0, 1))
        if not failed:
            identity = torch.eye(len(hessian), device=hessian.device)
            factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return factor
    raise PruneError(
        f"the Hessian must have a Cholesky factor; it has none at damping {damping}, nor at 10 and 100 times that."
        " Give more calibration text or a larger damping."
    )


def prune_columns(
    weight: Float[Tensor, "rows cols"], factor: Float[Tensor, "cols cols"], rule: Rule
) -> Float[Tensor, "rows cols"]:
    """Return the weight matrix pruned 128 columns at a time (fewer at the end), with the later columns corrected.

    Zeros of `weight` are pruned first and stay zero. `factor` is the result of `inverse_factor`.
    """
    weight, zeros = weight.clone(), weight == 0
    for start, end, count in _stripes(zeros, rule):
        here, later = slice(start, end), slice(end, None)
        pruned, error = _eliminate(weight[:, here], zeros[:, here], factor[here, here], rule, count)
        weight[:, here] = pruned
        weight[:, later] -= error @ factor[here, later]
    return weight


def _stripes(zeros: Bool[Tensor, "rows cols"], rule: Rule) -> Iterator[tuple[int, int, int]]:
    """Yield the first column, the end and the number of zeros of each stripe of columns. No pattern group is split.

    Each stripe gets its part of the remaining zeros, rounded down, so the last stripes get what rounding left over.
    `zeros` marks the weights that are zero at the start. No stripe gets fewer zeros than it has at the start.
    """
    cols, width = zeros.shape[1], max(BLOCK // rule.pattern.of, 1) * rule.pattern.of
    present, left = zeros.sum(0).cpu().tolist(), rule.zeros
    for start in range(0, cols, width):
        end = min(start + width, cols)
        count = min(left * (end - start) // (cols - start), left - sum(present[end:]))
        count = max(count, sum(present[start:end]))
        left -= count
        yield start, end, count


def _eliminate(
    weight: Float[Tensor, "rows width"],
    zeros: Bool[Tensor, "rows width"],
    factor: Float[Tensor, "width width"],
    rule: Rule,
    count: int,
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """Prune one stripe of columns.

    Returns the pruned stripe, and the error of each column divided by the diagonal entry of `factor`.
    """
    weight, errors, mask = weight.clone(), torch.zeros_like(weight), zeros.clone()
    step = rule.pattern.of if rule.pattern.grouped else weight.shape[1]
    group = max(GROUP // rule.pattern.of, 1) * rule.pattern.of
    for start in range(0, weight.shape[1], group):
        end = min(start + group, weight.shape[1])
        for column in range(start, end):
            if column % step == 0:
                now = slice(column, column + step)
                score = (weight[:, now] / factor.diagonal()[now]).abs().masked_fill(zeros[:, now], -1.0)
                mask[:, now] |= _choose(score, rule, count)
            errors[:, column] = weight[:, column] * mask[:, column] / factor[column, column]
            weight[:, column:end] -= errors[:, column, None] * factor[column, column:end]
        weight[:, end:] -= errors[:, start:end] @ factor[start:end, end:]
    return weight.masked_fill(mask, 0.0), errors


def _choose(score: Float[Tensor, "rows width"], rule: Rule, count: int) -> Bool[Tensor, "rows width"]:
    if rule.pattern.grouped:
        return smallest_in_groups(score, rule.pattern)
    return smallest_overall(rule.weighted(score), count)
