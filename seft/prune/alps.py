"""ALPS (Meng et al. 2024, arXiv 2406.07831) prunes a linear and corrects its remaining weights.

ADMM chooses the weights that stay nonzero (the support). Conjugate gradients then compute their best values. The error
of a linear is a least-squares problem in the Hessian. The problem is scaled so that the diagonal of the Hessian is one
(section 3.3); plain conjugate gradients on the scaled problem equal the paper's preconditioned ones. The penalty
parameter of ADMM grows while the support still changes (appendix B). The iterations stop as in the published code. The
published code also restarts with a smaller penalty if the first checks find less than 0.5 % of the support changed; we
continue [ours]. Everything is float32, except the eigenvalues in float64.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.prune.least_squares import Choose, Hessian, Weight, solve_on_support, unit_diagonal
from seft.prune.mask import zeros_first
from seft.prune.pruner import Corrected
from seft.prune.statistics import damped

FIRST_PENALTY = 0.1
CHECK_EVERY, MOST_ITERATIONS = 3, 300
PATIENT_ITERATIONS, SETTLED = 30, 0.0003
"""After so many iterations, they stop if less than this fraction of the support changed between two checks."""
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Pairs (fraction, factor). The penalty is multiplied by the factor of the first pair whose fraction of the support has
changed."""
SOLVER_STEPS = 10


class ALPS(Corrected):
    """Prunes one weight matrix by ADMM, and corrects the values of the weights that remain."""

    def prune(self) -> Weight:
        """Return the pruned and corrected weight matrix. Raises PruneError if the inputs were missing or not finite."""
        hessian = self._inputs.hessian()
        dead = hessian.diagonal() == 0
        hessian, scale = unit_diagonal(damped(hessian, self._damping))
        weight = self._weight.float().masked_fill(dead, 0.0) * scale

        def choose(candidate: Weight) -> Bool[Tensor, "rows cols"]:
            score = zeros_first(candidate.square(), weight)
            return self._rule.choose(score) | (weight == 0)

        solved = solve_on_support(find_support(weight, hessian, choose), weight, hessian, SOLVER_STEPS)
        return (solved / scale).to(self._weight.dtype)


def find_support(weight: Weight, hessian: Hessian, choose: Choose) -> Weight:
    """Return a sparse matrix whose outputs are close to those of `weight` (algorithm 1).

    `dense` minimises error and penalty together. `sparse` is the nearest matrix in which the entries selected by
    `choose` are zero. `dual` is the Lagrange multiplier of `dense == sparse`.
    """
    values, vectors = (part.float() for part in torch.linalg.eigh(hessian.double()))
    penalty, target = FIRST_PENALTY, weight @ hessian
    inverse = _shifted_inverse(values, vectors, penalty)
    sparse, dual = weight.masked_fill(choose(weight), 0.0), torch.zeros_like(weight)
    support = sparse != 0
    for iteration in range(1, MOST_ITERATIONS + 1):
        dense = (target - dual + penalty * sparse) @ inverse
        candidate = dense + dual / penalty
        sparse = candidate.masked_fill(choose(candidate), 0.0)
        dual += penalty * (dense - sparse)
        if iteration % CHECK_EVERY:
            continue
        before, support = support, sparse != 0
        changed = int((before ^ support).sum()) / max(1, int(support.sum()))
        if is_settled(iteration, changed):
            break
        penalty *= next(factor for fraction, factor in GROWTH if changed > fraction)
        inverse = _shifted_inverse(values, vectors, penalty)
    return sparse


def is_settled(iteration: int, changed: float) -> bool:
    """Return whether the iterations stop because only a fraction `changed` of the support changed since the last check.

    As in the published code, they stop if nothing changed, and after 30 iterations if less than 0.0003 changed.
    """
    return changed == 0 or (iteration > PATIENT_ITERATIONS and changed < SETTLED)


def _shifted_inverse(values: Float[Tensor, "cols"], vectors: Hessian, shift: float) -> Hessian:
    return (vectors / (values + shift)) @ vectors.T
