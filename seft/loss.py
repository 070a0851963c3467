"""Loss of next-token prediction that does not hold all logits in memory.

With a large vocabulary the logits need more memory than anything else in a step. So the head runs on a few hundred
tokens at a time. If gradients are needed, the gradient of the hidden state is computed together with the loss, so
nothing is computed twice. The head is frozen: its weights get no gradient. Models that scale or cap their logits, such
as Gemma 2, are an exception: the model computes all logits of a micro-batch.
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

SMALLEST = 1e-6
"""Probability below which all tokens outside of the most probable ones are ignored."""
Criterion = Callable[[Float[Tensor, "some vocabulary"], slice], Float[Tensor, "some"]]
"""Function that computes the losses of some predictions from their logits. The slice tells which predictions."""


class TokenLoss:
    """Computes the loss per token of a causal language model of transformers.

    The loss is the cross-entropy. In windows with recorded predictions of a teacher, it is the divergence from them.
    """

    def __init__(self, model: Any) -> None:
        self._predictor = Predictor(model)

    def __call__(self, batch: Packed | Int[Tensor, "windows tokens"]) -> Float[Tensor, "predictions"]:
        """Return the loss of each predicted token in nats, ordered by window and token.

        It is differentiable in the last hidden states, and so in the trained weights.
        """
        batch = Packed.of(batch)
        criterion = with_recorded(batch, cross_entropy(batch))
        return losses(self._predictor, self._predictor.rows(batch).last, criterion)


def cross_entropy(batch: Packed) -> Criterion:
    """Return the criterion that computes the cross-entropy of the predictions with the actual next tokens."""
    targets = batch.tokens[batch.trained]
    return lambda logits, some: F.cross_entropy(logits, targets[some], reduction="none")


def with_recorded(batch: Packed, criterion: Criterion) -> Criterion:
    """Return a criterion for windows of which some have recorded predictions.

    It is the divergence from the predictions in these windows, and `criterion` in all others.
    """
    if (teacher := batch.teacher) is None:
        return criterion
    known = teacher.known.repeat_interleave(batch.trained.sum(1))
    tokens, target = teacher.tokens[batch.trained].long(), teacher.logarithms[batch.trained]

    def chosen(logits: Tensor, some: slice) -> Tensor:
        if not known[some].any():
            return criterion(logits, some)
        divergence = teacher.weight * top_divergence(logits, tokens[some], target[some])
        return divergence if known[some].all() else torch.where(known[some], divergence, criterion(logits, some))

    return chosen


def top_divergence(
    logits: Float[Tensor, "predictions vocabulary"],
    tokens: Int[Tensor, "predictions top"],
    target: Float[Tensor, "predictions top"],
) -> Float[Tensor, "predictions"]:
    """Return the Kullback-Leibler divergence of a model from its teacher, in nats, at temperature 1.

    `target` has the teacher's log-probabilities of `tokens`. All other tokens count as one, so the divergence is 0 if
    the model equals the teacher, and at most the divergence over the whole vocabulary.
    """
    student = logits.log_softmax(1).gather(1, tokens)
    divergence = (target.exp() * (target - student)).sum(1)
    rest, own = (1 - each.exp().sum(1) for each in (target, student))
    outside = rest * (rest.clamp(min=SMALLEST).log() - own.clamp(min=SMALLEST).log())
    return divergence + torch.where(rest > SMALLEST, outside, 0.0)


def losses(
    predictor: Predictor, last: Float[Tensor, "predictions width"], criterion: Criterion
) -> Float[Tensor, "predictions"]:
    """Return the loss of every row by `criterion`, with few logits in memory at a time.

    `last` has the rows of `Predictor.rows`. The result is differentiable in them.
    """
    values: Tensor = _HeadLoss.apply(last, predictor, criterion)  # type: ignore[no-untyped-call]
    return values


class _HeadLoss(torch.autograd.Function):
    """Autograd function of the loss. The gradient is computed in the forward pass.

    The loss of a prediction depends only on its own row, so the gradient has one row per prediction.
    """

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
    """Return the losses of one slice of the predictions, and the gradients of these losses with respect to the rows."""
    with torch.set_grad_enabled(needs_gradient):
        leaf = last.detach().requires_grad_(needs_gradient)
        values = criterion(predictor.logits(leaf), some)
    gradient = torch.autograd.grad(values, leaf, torch.ones_like(values))[0] if needs_gradient else leaf
    return values.detach(), gradient
