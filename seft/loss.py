"""The loss of next-token prediction, without the logits ever standing whole in memory.

The logits of a large vocabulary outweigh everything else in a step. Here the head sees a few hundred tokens at a time;
when gradients are wanted, that of the hidden state is made in the same visit, so nothing is computed twice. The head
itself is taken as frozen: no gradient of its weights is made.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LOGITS_AT_ONCE = 1 << 24


class TokenLoss:
    """Losses of a causal language model of transformers, token by token.

    Some architectures scale or cap their logits behind the head. Whether this one does is tried once on two tokens,
    not read from its name; where it does, the whole logits are used.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._head: nn.Module = model.get_output_embeddings()
        self._plain = _has_plain_head(model)

    def __call__(self, windows: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch predictions"]:
        """Nats per prediction, `tokens - 1` of them in each window; differentiable in what comes before the head."""
        targets = windows[:, 1:]
        if self._plain:
            hidden = self._model.base_model(input_ids=windows, use_cache=False).last_hidden_state[:, :-1]
            losses: Tensor = _HeadLoss.apply(hidden.flatten(0, 1), targets.flatten(), self._head)  # type: ignore[no-untyped-call]
            return losses.view_as(targets)
        logits = self._model(input_ids=windows, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.float().mT, targets, reduction="none")


LOUD = 1e4
"""How much larger than usual the probe makes a hidden state: a cap that small logits do not feel shows itself."""


@torch.no_grad()
def _has_plain_head(model: Any) -> bool:
    """Whether the logits are the head of the last hidden state and nothing else."""
    tokens = torch.tensor([[0, 1]], device=model.device)
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state * LOUD
    hook = head.register_forward_pre_hook(lambda _, args: (args[0] * LOUD,))
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    return torch.allclose(head(hidden).to(logits.dtype), logits)


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of `head(hidden)`. A prediction's loss depends on its own hidden row alone, so one row is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Float[Tensor, "predictions cols"], targets: Int[Tensor, "predictions"], head: nn.Linear
    ) -> Float[Tensor, "predictions"]:
        wanted = ctx.needs_input_grad[0]
        chunk = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
        pieces = [
            _chunk(some, next_tokens, head, wanted)
            for some, next_tokens in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        ]
        if wanted:
            ctx.save_for_backward(torch.cat([gradient for _, gradient in pieces]))
        return torch.cat([losses for losses, _ in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Float[Tensor, "predictions"]) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * weights[:, None]).to(gradient.dtype), None, None


def _chunk(
    hidden: Float[Tensor, "predictions cols"], targets: Int[Tensor, "predictions"], head: nn.Linear, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Losses of some predictions, and what each of them adds per unit to the gradient of its hidden row."""
    with torch.set_grad_enabled(wanted):
        leaf = hidden.detach().requires_grad_(wanted)
        losses = F.cross_entropy(head(leaf).float(), targets, reduction="none")
    gradient = torch.autograd.grad(losses, leaf, torch.ones_like(losses))[0] if wanted else leaf
    return losses.detach(), gradient
