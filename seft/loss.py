"""The loss of next-token prediction, without the logits ever standing whole in memory.

The logits of a large vocabulary outweigh everything else in a step. Here the head sees a few hundred tokens at a time;
when gradients are wanted, that of the hidden state is made in the same visit, so nothing is computed twice. The head
itself is taken as frozen: no gradient of its weights is made.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seft.data.packing import Packed
from seft.models.predictor import Predictor

LOGITS_AT_ONCE = 1 << 24

Criterion = Callable[[Float[Tensor, "some vocabulary"], slice], Float[Tensor, "some"]]
"""Losses of the predictions at some places, from their logits."""


class TokenLoss:
    """Cross-entropy of a causal language model of transformers, token by token."""

    def __init__(self, model: Any) -> None:
        self._predictor = Predictor(model)

    def __call__(self, batch: Packed | Int[Tensor, "windows tokens"]) -> Float[Tensor, "predictions"]:
        """Nats per trained token, in the order of windows and tokens; differentiable in what comes before the head."""
        batch = Packed.of(batch)
        return losses(self._predictor, self._predictor.rows(batch).last, cross_entropy(batch))


def cross_entropy(batch: Packed) -> Criterion:
    """Against the tokens that were there."""
    targets = batch.tokens[batch.trained]
    return lambda logits, some: F.cross_entropy(logits, targets[some], reduction="none")


def losses(
    predictor: Predictor, last: Float[Tensor, "predictions width"], criterion: Criterion
) -> Float[Tensor, "predictions"]:
    """What `criterion` says of every row, whose logits exist a few at a time; differentiable in the rows."""
    found: Tensor = _HeadLoss.apply(last, predictor, criterion)  # type: ignore[no-untyped-call]
    return found


class _HeadLoss(torch.autograd.Function):
    """A prediction's loss depends on its own row alone, so the gradient is one row for each."""

    @staticmethod
    def forward(
        ctx: Any, last: Float[Tensor, "predictions width"], predictor: Predictor, criterion: Criterion
    ) -> Float[Tensor, "predictions"]:
        wanted = ctx.needs_input_grad[0]
        size = max(1, LOGITS_AT_ONCE // predictor.vocabulary)
        places = [slice(start, start + size) for start in range(0, max(1, len(last)), size)]
        pieces = [_chunk(last[some], some, predictor, criterion, wanted) for some in places]
        if wanted:
            ctx.save_for_backward(torch.cat([gradient for _, gradient in pieces]))
        return torch.cat([found for found, _ in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Float[Tensor, "predictions"]) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * weights[:, None]).to(gradient.dtype), None, None


def _chunk(
    last: Float[Tensor, "some width"], some: slice, predictor: Predictor, criterion: Criterion, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Losses of some predictions, and what each of them adds per unit to the gradient of its row."""
    with torch.set_grad_enabled(wanted):
        leaf = last.detach().requires_grad_(wanted)
        found = criterion(predictor.logits(leaf), some)
    gradient = torch.autograd.grad(found, leaf, torch.ones_like(found))[0] if wanted else leaf
    return found.detach(), gradient
