"""How well a model predicts text. No tasks, no generation: perplexity alone."""

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.data.packing import Packed
from seft.data.text import require_known_tokens
from seft.errors import EvaluateError
from seft.loss import TokenLoss
from seft.report import Phase, Progress, Reporter, silent


def perplexity(model: Any, windows: Packed | Int[Tensor, "windows tokens"], report: Reporter = silent) -> float:
    """exp of the mean loss; infinite where that is beyond a float."""
    try:
        return math.exp(mean_loss(model, windows, report))
    except OverflowError:
        return math.inf


@torch.no_grad()
def mean_loss(model: Any, windows: Packed | Int[Tensor, "windows tokens"], report: Reporter = silent) -> float:
    """Over all trained predictions, in nats; over windows that are full, that is the mean of their means.

    EvaluateError where a loss is not finite.
    """
    windows = Packed.of(windows)
    require_known_tokens(windows.tokens, model)
    loss = TokenLoss(model)
    total = 0.0
    for done, window in enumerate(windows.split(1), start=1):
        share = loss(window.to(model.device)).double().mean().item() * window.predictions
        if not math.isfinite(share):
            raise EvaluateError(f"losses must be finite; window {done} has {share}. The model's weights are broken.")
        total += share
        report(Progress(Phase.EVALUATING, done, len(windows)))
    return total / windows.predictions
