"""ADMM pruning (Boža 2024, arXiv 2401.02938): choose the zeros gradually while the remaining weights are corrected.

The Hessian is scaled to a diagonal of one, then 0.1 is added to the diagonal. Each of 15 iterations of the alternating
direction method of multipliers (ADMM) chooses the mask again, with more zeros than before. These numbers come from the
published code. Four things differ [ours]. For a model in bfloat16, the products of the iterations are in bfloat16;
all else is float32. Conjugate gradients compute the final values of the nonzeros; the published code runs 5 more
iterations with the last mask. In an N:M pattern, the number of zeros rises in each group separately. Existing zeros
stay.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from typing_extensions import override

from seft.prune.least_squares import Hessian, Weight, add_minimum, minimiser, solve_on_support, unit_diagonal
from seft.prune.mask import Rule, as_float, cubic_rise
from seft.prune.pruner import Corrected

DAMPING = 0.1
"""Number added to the diagonal of the scaled Hessian. The setting `damping` is not used."""
ITERATIONS, SOLVER_STEPS = 15, 6
"""Number of iterations of ADMM, and of steps of conjugate gradients after them. With more steps, the error of a linear
is the same to four digits."""


class ADMM(Corrected):
    """Prunes one weight matrix gradually, and corrects the weights that remain."""

    @override
    def solve(self, weight: Weight) -> Weight:
        hessian, scale, matrix = self._inputs.derived(_prepare, self._weight.dtype)
        weight = weight * scale
        sparse = prune_gradually(weight, matrix, self._rule)
        return solve_on_support(sparse, weight, hessian, SOLVER_STEPS) / scale


def _prepare(
    hessian: Hessian, dtype: torch.dtype
) -> tuple[Hessian, Float[Tensor, "cols"], Shaped[Tensor, "cols cols"]]:
    """Return the scaled Hessian with damping, the scale of each column, and the `minimiser` for the penalty 1."""
    hessian, scale = unit_diagonal(hessian)
    hessian.diagonal().add_(DAMPING)
    return hessian, scale, minimiser(hessian, 1.0, dtype)


def prune_gradually(weight: Weight, matrix: Shaped[Tensor, "cols cols"], rule: Rule) -> Weight:
    """Return a matrix with the zeros that `rule` sets, whose outputs are close to the outputs of `weight`.

    `matrix` is the `minimiser` for the penalty 1. `sparse` is the matrix nearest to `candidate` that has the present
    mask. `dual` is the scaled Lagrange multiplier. `candidate` is the sum of `dual` and the matrix that minimises error
    and penalty. Where `weight` is zero, `candidate` is zero too.
    """
    nonzero, candidate = as_float(weight != 0), weight
    for iteration in range(1, ITERATIONS + 1):
        mask = rule.partial(cubic_rise(iteration / ITERATIONS)).choose(candidate.abs())
        sparse = candidate * as_float(~mask)
        dual = candidate - sparse
        candidate = add_minimum(dual, weight, sparse - dual, matrix).mul_(nonzero)
    return candidate.masked_fill(mask | (weight == 0), 0.0)
