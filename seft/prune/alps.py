"""ALPS (Meng et al. 2024, arXiv 2406.07831): support and weights sought together by ADMM, then solved on the support.

The layer's error is least squares in the Hessian, so it is put into coordinates in which the Hessian has a diagonal
of ones (section 3.3); plain conjugate gradients there are the paper's preconditioned ones. Its penalty parameter grows
while the support still changes (appendix B). All in float32 but for the eigenvalues.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seft.config import Compare, PruneConfig
from seft.prune.mask import Rule, zeros_first
from seft.prune.statistics import Gram, damped

FIRST_PENALTY = 0.1
CHECK_EVERY, MOST_ITERATIONS = 3, 300
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # where more than this share of the support changed, grow by this
SOLVER_STEPS = 10

Weight = Float[Tensor, "rows cols"]
Choose = Callable[[Weight], Bool[Tensor, "rows cols"]]
"""Gives the entries of a candidate that the rule does not allow."""


class ALPS:
    """Prunes one weight by ADMM on its reconstruction error, and repairs what is left."""

    needs_text: ClassVar[bool] = True
    compare: ClassVar[Compare] = Compare.LAYER

    def __init__(self, weight: Weight, rule: Rule, config: PruneConfig) -> None:
        self._weight, self._rule, self._damping = weight, rule, config.damping
        self._inputs = Gram(weight)

    def observe(self, inputs: Float[Tensor, "*batch cols"]) -> None:
        """Take some inputs into the Hessian."""
        self._inputs.observe(inputs)

    def prune(self) -> Weight:
        """The pruned and corrected weight; PruneError where the inputs were not finite, or there were none."""
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
    """A sparse weight with a small error, by algorithm 1; its support has settled or 300 iterations are over.

    `dense` minimises error and penalty together, `sparse` is the nearest that the rule allows, `dual` pulls the two
    together.
    """
    values, vectors = (part.float() for part in torch.linalg.eigh(hessian.double()))
    penalty, target = FIRST_PENALTY, weight @ hessian
    inverse = _shifted_inverse(values, vectors, penalty)
    sparse, dual = weight.masked_fill(choose(weight), 0.0), torch.zeros_like(weight)
    support = sparse != 0
    for iteration in range(1, MOST_ITERATIONS + 1):
        dense = (target - dual + penalty * sparse) @ inverse
        wanted = dense + dual / penalty
        sparse = wanted.masked_fill(choose(wanted), 0.0)
        dual += penalty * (dense - sparse)
        if iteration % CHECK_EVERY:
            continue
        before, support = support, sparse != 0
        changed = int((before ^ support).sum())
        if not changed:
            break
        penalty *= next(factor for share, factor in GROWTH if changed > share * int(support.sum()))
        inverse = _shifted_inverse(values, vectors, penalty)
    return sparse


def _shifted_inverse(
    values: Float[Tensor, "cols"], vectors: Float[Tensor, "cols cols"], shift: float
) -> Float[Tensor, "cols cols"]:
    return (vectors / (values + shift)) @ vectors.T


def solve_on_support(sparse: Weight, weight: Weight, hessian: Float[Tensor, "cols cols"]) -> Weight:
    """Go towards the least error on the support of `sparse`: conjugate gradients, all rows at once (algorithm 2)."""
    support = sparse != 0
    residual = ((weight - sparse) @ hessian) * support
    direction, square = residual, residual.square().sum(1, keepdim=True)
    for _ in range(SOLVER_STEPS):
        bent = (direction @ hessian) * support
        step = square / (direction * bent).sum(1, keepdim=True).clamp_min(1e-30)
        sparse = sparse + step * direction
        residual = residual - step * bent
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + square / before.clamp_min(1e-30) * direction
    return sparse
