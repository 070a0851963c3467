"""Least squares on a fixed support: the best values of the nonzeros of a weight matrix, for the inputs of its linear.

The error of a linear is a quadratic function of its weights, given by the Hessian.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

Weight = Float[Tensor, "rows cols"]
Hessian = Float[Tensor, "cols cols"]
Choose = Callable[[Weight], Bool[Tensor, "rows cols"]]
"""Function that returns the mask of the entries to set to zero in a weight matrix."""
SMALLEST_SCALE = 1e-8
"""Lower limit of the scale of a column, as a fraction of the largest scale. Columns without inputs get this scale."""


def unit_diagonal(hessian: Hessian) -> tuple[Hessian, Float[Tensor, "cols"]]:
    """Return the Hessian of the weights times `scale`, whose diagonal is one, and this scale of each column.

    The diagonal is smaller than one in columns whose inputs are zero or extremely small.
    """
    scale = hessian.diagonal().sqrt()
    scale = scale.clamp_min(SMALLEST_SCALE * scale.max())
    return hessian / scale / scale[:, None], scale


def solve_on_support(sparse: Weight, weight: Weight, hessian: Hessian, steps: int) -> Weight:
    """Return `sparse` with better values of its nonzeros, by steps of conjugate gradients on all rows at once.

    The outputs become more similar to those of `weight` (algorithm 2 of ALPS, arXiv 2406.07831).
    """
    support = (sparse != 0).to(sparse.dtype)
    residual = ((weight - sparse) @ hessian) * support
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for _ in range(steps):
        curved = (direction @ hessian) * support
        step = square / (direction * curved).sum(1, keepdim=True).clamp_min(1e-30)
        sparse = sparse + step * direction
        residual = residual - step * curved
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + square / before.clamp_min(1e-30) * direction
    return sparse
