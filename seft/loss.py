"""Loss of next-token prediction that never holds all logits in memory.

The logits of a large vocabulary need more memory than anything else in a step. The head runs on a few hundred tokens at
a time. If gradients are needed, the gradient of the hidden state is computed with the loss, so nothing is computed
twice. The head is frozen: its weights get no gradient.
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
"""Number of logits in memory at a time."""

Criterion = Callable[[Float[Tensor, "some vocabulary"], slice], Float[Tensor, "some"]]
"""Computes the losses of a slice of the predictions from their logits."""


class TokenLoss:
    """Cross-entropy per token of a causal language model of transformers."""

    def __init__(self, model: Any) -> None:
        self._predictor = Predictor(model)

    def __call__(self, batch: Packed | Int[Tensor, "windows tokens"]) -> Float[Tensor, "predictions"]:
        """Return nats per trained token, ordered by window and token. Differentiable in the inputs of the head."""
        batch = Packed.of(batch)
        return losses(self._predictor, self._predictor.rows(batch).last, cross_entropy(batch))


def cross_entropy(batch: Packed) -> Criterion:
    """Return the criterion that compares the predictions with the actual next tokens."""
    targets = batch.tokens[batch.trained]
    return lambda logits, some: F.cross_entropy(logits, targets[some], reduction="none")


def losses(
    predictor: Predictor, last: Float[Tensor, "predictions width"], criterion: Criterion
) -> Float[Tensor, "predictions"]:
    """Return the loss of every row by `criterion`, with few logits in memory at a time. Differentiable in the rows."""
    values: Tensor = _HeadLoss.apply(last, predictor, criterion)  # type: ignore[no-untyped-call]
    return values


class _HeadLoss(torch.autograd.Function):
    """The loss of a prediction depends only on its own row, so the gradient has one row per prediction."""

    @staticmethod
    def forward(
        ctx: Any, last: Float[Tensor, "predictions width"], predictor: Predictor, criterion: Criterion
    ) -> Float[Tensor, "predictions"]:
        needs_gradient = ctx.needs_input_grad[0]
        chunk = max(1, LOGITS_AT_ONCE // predictor.vocabulary)
        slices = [slice(start, start + chunk) for start in range(0, max(1, len(last)), chunk)]
        pieces = [_chunk(last[some], some, predictor, criterion, needs_gradient) for some in slices]
        if needs_gradient:
            ctx.save_for_backward(torch.cat([gradient for _, gradient in pieces]))
        return torch.cat([values for values, _ in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Float[Tensor, "predictions"]) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * weights[:, None]).to(gradient.dtype), None, None


def _chunk(
    last: Float[Tensor, "some width"], some: slice, predictor: Predictor, criterion: Criterion, needs_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the losses of a slice of the predictions, and their gradients with respect to the rows."""
    with torch.set_grad_enabled(needs_gradient):
        leaf = last.detach().requires_grad_(needs_gradient)
        values = criterion(predictor.logits(leaf), some)
    gradient = torch.autograd.grad(values, leaf, torch.ones_like(values))[0] if needs_gradient else leaf
    return values.detach(), gradient
