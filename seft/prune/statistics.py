"""What pruners learn from the inputs of a linear, in float32: sizes of columns, or how columns go together."""

import torch
from jaxtyping import Float
from torch import Tensor

from seft.errors import PruneError


class Norms:
    """The l2 norm of every input column over all tokens seen."""

    def __init__(self, weight: Float[Tensor, "rows cols"]) -> None:
        self._squares = torch.zeros(weight.shape[1], device=weight.device)

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Add some inputs."""
        self._squares += inputs.reshape(-1, inputs.shape[-1]).float().square().sum(0)

    def norms(self) -> Float[Tensor, "cols"]:
        """PruneError where the inputs were not finite, or there were none."""
        return _said_something(self._squares).sqrt()


class Gram:
    """The running mean over calls of `2 x x^T`, as SparseGPT's published code has it: the Hessian of its error."""

    def __init__(self, weight: Float[Tensor, "rows cols"]) -> None:
        self._mean = torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)
        self._calls = 0

    def see(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Take some inputs into the mean."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self._calls += 1
        self._mean.mul_((self._calls - 1) / self._calls)
        self._mean.addmm_(rows.T, rows, alpha=2 / self._calls)

    def hessian(self) -> Float[Tensor, "cols cols"]:
        """PruneError where the inputs were not finite, or there were none. Not a copy."""
        _said_something(self._mean.diagonal())
        return self._mean


def damped(hessian: Float[Tensor, "cols cols"], damping: float) -> Float[Tensor, "cols cols"]:
    """With `damping` times the mean of the diagonal added to the diagonal."""
    with_more = hessian.clone()
    with_more.diagonal().add_(damping * hessian.diagonal().mean())
    return with_more


def _said_something(squares: Float[Tensor, "cols"]) -> Float[Tensor, "cols"]:
    if not squares.isfinite().all():
        raise PruneError("inputs must be finite; some are not. Check the model's weights and dtype.")
    if not squares.any():
        raise PruneError("inputs must not be all zero; no calibration token reached it. Give more text.")
    return squares
