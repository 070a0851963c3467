"""Least squares for pruning: steps of ADMM that choose a support, and the best values of the weights on a support.

The error of a linear is a quadratic function of its weights, given by the Hessian. The support is the set of weights
that stay nonzero.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from seft.prune.mask import as_float

Weight = Float[Tensor, "rows cols"]
Hessian = Float[Tensor, "cols cols"]
SMALLEST_BLOCK = 96
SMALLEST_SCALE = 1e-8
"""Lower limit of the scale of a column, as a fraction of the largest scale. Columns without inputs get this scale."""


def unit_diagonal(hessian: Hessian) -> tuple[Hessian, Float[Tensor, "cols"]]:
    """Return the Hessian scaled to a diagonal of one, and the scale of each column.

    It is the Hessian of the weights times this scale. Its diagonal is smaller than one in columns whose inputs are zero
    or extremely small.
    """
    scale = hessian.diagonal().sqrt()
    scale = scale.clamp_min(SMALLEST_SCALE * scale.max())
    return hessian / scale / scale[:, None], scale


def minimiser(hessian: Hessian, penalty: float, dtype: torch.dtype) -> Shaped[Tensor, "cols cols"]:
    """Return the matrix for `add_minimum`, in bfloat16 if this is the `dtype` of the model, and else in float32."""
    inverse = _inverse(hessian.diagonal_scatter(hessian.diagonal() + penalty)).mul_(penalty)
    return inverse.to(dtype) if dtype == torch.bfloat16 else inverse


def add_minimum(total: Weight, weight: Weight, near: Weight, matrix: Shaped[Tensor, "cols cols"]) -> Weight:
    """Add to `total`, in place, the weights that minimise the error plus the penalty on their distance to `near`.

    These are `weight + (near - weight) @ matrix`. `matrix` is the result of `minimiser`. Its eigenvalues are between
    0 and 1, so a product in bfloat16 causes an error that is small relative to the distance [ours]. `near` is
    overwritten.
    """
    distance = near.sub_(weight)
    total.add_(weight)
    if matrix.dtype == distance.dtype:
        return total.addmm_(distance, matrix)
    return total.add_(distance.to(matrix.dtype) @ matrix)


def _inverse(matrix: Hessian) -> Hessian:
    """Return the inverse of a symmetric positive definite matrix.

    A large matrix is inverted by blocks, so that nearly all work is products of matrices: with two threads and 1,536
    columns this takes a quarter of the time of torch.cholesky_inverse.
    """
    half = len(matrix) // 2
    if half < SMALLEST_BLOCK:
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    result = torch.empty_like(matrix)
    first, across = _inverse(matrix[:half, :half]), matrix[:half, half:]
    product = first @ across
    last = _inverse(matrix[half:, half:] - across.T @ product)  # the inverse of the Schur complement
    result[half:, half:] = last
    result[:half, half:] = -(product @ last)
    result[half:, :half] = result[:half, half:].T
    result[:half, :half] = torch.addmm(first, result[:half, half:], product.T, alpha=-1)
    return result


def solve_on_support(sparse: Weight, weight: Weight, hessian: Hessian, steps: int) -> Weight:
    """Return `sparse` with better values of its nonzeros, by steps of conjugate gradients on all rows at once.

    The outputs become more similar to the outputs of `weight` (algorithm 2 of ALPS, arXiv 2406.07831).
    """
    support = as_float(sparse != 0)
    residual = ((weight - sparse) @ hessian).mul_(support)
    sparse, direction, square = sparse.clone(), residual.clone(), _square(residual)
    for _ in range(steps):
        curved = (direction @ hessian).mul_(support)
        step = square / (direction * curved).sum(1, keepdim=True).clamp_min(1e-30)
        sparse.addcmul_(step, direction)
        residual.addcmul_(step, curved, value=-1)
        before, square = square, _square(residual)
        direction.mul_(square / before.clamp_min(1e-30)).add_(residual)
    return sparse


def _square(residual: Weight) -> Float[Tensor, "rows 1"]:
    return residual.square().sum(1, keepdim=True)
