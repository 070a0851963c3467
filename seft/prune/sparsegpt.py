"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1): prune, and let later columns take up the error.

As in the published code: the Hessian is the running mean of `2 x x^T` over calls, a mask is chosen for 128 columns at
a time within all rows, all in float32. Two things differ on purpose: exactly the asked number of entries is pruned in
each block of columns (the published threshold takes one more), and zeros that were there before stay.
"""

from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seft.config import PruneConfig
from seft.errors import PruneError
from seft.prune.mask import smallest, usable

BLOCK = 128
DAMPING_TRIES = (1, 10, 100)


class SparseGPT:
    """Prunes one linear by `W^2 / diag(H^-1)^2`, with error pushed to later columns."""

    needs_text: ClassVar[bool] = True

    def __init__(self, linear: nn.Linear, config: PruneConfig) -> None:
        self._weight, self._config = linear.weight.detach(), config
        self._hessian = torch.zeros(linear.in_features, linear.in_features, device=linear.weight.device)
        self._calls = 0

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Take some inputs into the running mean."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self._calls += 1
        self._hessian.mul_((self._calls - 1) / self._calls)
        self._hessian.addmm_(rows.T, rows, alpha=2 / self._calls)

    def pruned(self) -> Float[Tensor, "rows cols"]:
        """The pruned and corrected weight; PruneError where the Hessian is not finite, zero, or without a factor."""
        dead = usable(self._hessian.diagonal()) == 0
        self._hessian.diagonal()[dead] = 1.0
        weight = self._weight.float().masked_fill(dead, 0.0)
        factor = inverse_factor(self._hessian, self._config.damping)
        return by_sparsegpt(weight, factor, self._config.sparsity).to(self._weight.dtype)


def inverse_factor(hessian: Float[Tensor, "cols cols"], damping: float) -> Float[Tensor, "cols cols"]:
    """Upper Cholesky factor of the inverse of the damped Hessian.

    `damping` times the mean of the diagonal is added to the diagonal. Where no factor exists, ten and then a
    hundred times as much is tried; then it is a PruneError.
    """
    for share in DAMPING_TRIES:
        damped = hessian.clone()
        damped.diagonal().add_(damping * share * hessian.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return cast("Tensor", upper)
    raise PruneError(
        f"the Hessian must have a Cholesky factor; it has none at damping {damping} nor at ten and a hundred times"
        " that. Give more calibration text or a larger damping."
    )


def by_sparsegpt(
    weight: Float[Tensor, "rows cols"], factor: Float[Tensor, "cols cols"], sparsity: float
) -> Float[Tensor, "rows cols"]:
    """Prune `int(rows * width * sparsity)` entries of every `width` columns (128, fewer at the end), and repair.

    Zeros of `weight` are pruned first and stay zero.
    """
    weight, zeros = weight.clone(), weight == 0
    for start in range(0, weight.shape[1], BLOCK):
        here, later = slice(start, start + BLOCK), slice(start + BLOCK, None)
        kept, error = _eliminate(weight[:, here], zeros[:, here], factor[here, here], sparsity)
        weight[:, here] = kept
        weight[:, later] -= error @ factor[here, later]
    return weight


def _eliminate(
    weight: Float[Tensor, "rows width"],
    zeros: Bool[Tensor, "rows width"],
    factor: Float[Tensor, "width width"],
    sparsity: float,
) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows width"]]:
    """One block of columns pruned, and the error of each column in units of the factor's diagonal."""
    score = (weight / factor.diagonal()).square().masked_fill(zeros, -1.0)
    mask = smallest(score.reshape(1, -1), sparsity).view_as(score) | zeros
    weight, errors = weight.clone(), torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        errors[:, column] = weight[:, column] * mask[:, column] / factor[column, column]
        weight[:, column:] -= errors[:, column, None] * factor[column, column:]
    return weight.masked_fill(mask, 0.0), errors
