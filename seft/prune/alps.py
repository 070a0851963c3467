"""ALPS (Meng et al. 2024, arXiv 2406.07831) prunes a linear and corrects its remaining weights.

ADMM chooses the weights that stay nonzero (the support). Conjugate gradients then compute their best values. The error
of a linear is a least-squares problem in the Hessian. The problem is scaled so that the diagonal of the Hessian is one
(section 3.3); plain conjugate gradients on the scaled problem equal the paper's preconditioned ones. The penalty
parameter of ADMM grows while the support still changes (appendix B). For a model in bfloat16, the products of ADMM are
in bfloat16 [ours]. All else is float32.

Fewer iterations than in the published code reach the same error [ours]. The published code multiplies the penalty by
1.3 or less after every three iterations. It stops after 30 iterations or more, and then takes ten steps of conjugate
gradients.
"""

import torch
from typing_extensions import override

from seft.prune.least_squares import Hessian, Weight, add_minimum, minimiser, solve_on_support, unit_diagonal
from seft.prune.mask import Rule, as_float
from seft.prune.pruner import Corrected
from seft.prune.statistics import damped

FIRST_PENALTY, GROWTH = 0.15, 1.5
CHECK_EVERY, MOST_ITERATIONS = 4, 300
"""Iterations between two checks of the support, after which the penalty grows, and the largest number of iterations."""
SETTLED = 0.02
"""The iterations stop if less than this fraction of the support changed. An exchanged weight counts twice."""
SOLVER_STEPS = 3


class ALPS(Corrected):
    """Prunes one weight matrix by ADMM, and corrects the values of the weights that remain."""

    @override
    def solve(self, weight: Weight) -> Weight:
        hessian, scale = unit_diagonal(damped(self._inputs.hessian(), self._damping))
        weight = weight * scale
        sparse = find_support(weight, hessian, self._rule, self._weight.dtype)
        return solve_on_support(sparse, weight, hessian, SOLVER_STEPS) / scale


def find_support(weight: Weight, hessian: Hessian, rule: Rule, dtype: torch.dtype) -> Weight:
    """Return a matrix with the zeros that `rule` sets and outputs close to the outputs of `weight` (algorithm 1).

    `sparse` is the matrix nearest to `candidate` that has the present mask. `dual` is the Lagrange multiplier divided
    by the penalty. `candidate` is the sum of `dual` and the matrix that minimises error and penalty. Where `weight` is
    zero, `candidate` is zero too.
    """
    nonzero, penalty = as_float(weight != 0), FIRST_PENALTY
    matrix = minimiser(hessian, penalty, dtype)
    support = as_float(~rule.choose(weight.abs()))
    sparse, dual = weight * support, torch.zeros_like(weight)
    for iteration in range(1, MOST_ITERATIONS + 1):
        candidate = add_minimum(dual, weight, sparse - dual, matrix).mul_(nonzero)
        kept = as_float(~rule.choose(candidate.abs()))
        sparse = candidate * kept
        dual = candidate.sub_(sparse)
        if iteration % CHECK_EVERY:
            continue
        changed = float((kept - support).abs().sum() / kept.sum().clamp_min(1))
        if changed < SETTLED:
            break
        support = kept
        penalty *= GROWTH
        dual /= GROWTH
        matrix = minimiser(hessian, penalty, dtype)
    return sparse.masked_fill(kept * nonzero == 0, 0.0)
