"""ALPS (Meng et al. 2024, arXiv 2406.07831) prunes a linear and corrects its remaining weights.

ADMM chooses the weights that stay nonzero (the support). Conjugate gradients then compute their best values. The error
of a linear is a least-squares problem in the Hessian. The problem is scaled so that the diagonal of the Hessian is one
(section 3.3); plain conjugate gradients on the scaled problem equal the paper's preconditioned ones. The penalty
parameter of ADMM grows while the support still changes (appendix B). Everything is float32, except the eigenvalues in
float64.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule, zeros_first
from seft.prune.statistics import Batch, Gram, damped

FIRST_PENALTY = 0.1
CHECK_EVERY, MOST_ITERATIONS = 3, 300
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Pairs (fraction, factor). The penalty is multiplied by the factor of the first pair whose fraction of the support has
changed."""
SOLVER_STEPS = 10

Weight = Float[Tensor, "rows cols"]
Choose = Callable[[Weight], Bool[Tensor, "rows cols"]]
"""Function that returns the mask of the entries to set to zero in a weight matrix."""


class ALPS:
    """Prunes one weight matrix by ADMM, and corrects the values of the weights that remain."""

    needs_text: ClassVar[bool] = True
    compare: ClassVar[Compare] = Compare.LAYER

    def __init__(self, weight: Weight, rule: Rule, config: PruneConfig) -> None:
        self._weight, self._rule, self._damping = weight, rule, config.damping
        self._inputs = Gram(weight)

    def observe(self, batch: Batch) -> None:
        """Add a batch of the linear's inputs to the Hessian."""
        self._inputs.observe(batch)

    def prune(self) -> Weight:
        """Return the pruned and corrected weight matrix. Raises PruneError if the inputs were missing or not finite."""
        hessian = self._inputs.hessian()
        dead = hessian.diagonal() == 0
        hessian = damped(hessian, self._damping)
        scale = hessian.diagonal().sqrt()
        hessian = hessian / scale / scale[:, None]
        weight = self._weight.float().masked_fill(dead, 0.0) * scale

        def choose(candidate: Weight) -> Bool[Tensor, "rows cols"]:
            score = zeros_first(candidate.square(), weight)
            return self._rule.choose(score) | (weight == 0)

        solved = solve_on_support(admm(weight, hessian, choose), weight, hessian)
        return (solved / scale).to(self._weight.dtype)


def admm(weight: Weight, hessian: Float[Tensor, "cols cols"], choose: Choose) -> Weight:
    """Return a sparse matrix whose outputs are close to those of `weight` (algorithm 1).

    Stops if the support no longer changes, and after 300 iterations at the latest. `dense` minimises error and penalty
    together. `sparse` is the nearest matrix in which the entries selected by `choose` are zero. `dual` is the Lagrange
    multiplier of `dense == sparse`.
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
        changed = int((before ^ support).sum())
        if not changed:
            break
        penalty *= next(factor for fraction, factor in GROWTH if changed > fraction * int(support.sum()))
        inverse = _shifted_inverse(values, vectors, penalty)
    return sparse


def _shifted_inverse(
    values: Float[Tensor, "cols"], vectors: Float[Tensor, "cols cols"], shift: float
) -> Float[Tensor, "cols cols"]:
    return (vectors / (values + shift)) @ vectors.T


def solve_on_support(sparse: Weight, weight: Weight, hessian: Float[Tensor, "cols cols"]) -> Weight:
    """Return `sparse` with better values of its nonzeros, by conjugate gradients on all rows at once (algorithm 2)."""
    support = sparse != 0
    residual = ((weight - sparse) @ hessian) * support
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for _ in range(SOLVER_STEPS):
        curved = (direction @ hessian) * support
        step = square / (direction * curved).sum(1, keepdim=True).clamp_min(1e-30)
        sparse = sparse + step * direction
        residual = residual - step * curved
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + square / before.clamp_min(1e-30) * direction
    return sparse
