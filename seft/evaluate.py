"""How well a model predicts text. No tasks, no generation: perplexity alone."""

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from seft.errors import EvaluateError
from seft.loss import TokenLoss
from seft.report import Phase, Progress, Reporter, silent
from seft.text import must_be_known


@torch.no_grad()
def perplexity(model: Any, windows: Int[Tensor, "windows tokens"], report: Reporter = silent) -> float:
    """exp of the mean over windows of each window's mean loss over its `tokens - 1` predictions.

    Infinite where that is beyond a float; EvaluateError where a loss is not finite.
    """
    must_be_known(windows, model)
    loss = TokenLoss(model)
    total = 0.0
    for done, window in enumerate(windows[:, None], start=1):
        mean = loss(window.to(model.device)).double().mean().item()
        if not math.isfinite(mean):
            raise EvaluateError(f"losses must be finite; window {done} has {mean}. The model's weights are broken.")
        total += mean
        report(Progress(Phase.EVALUATING, done, len(windows)))
    try:
        return math.exp(total / len(windows))
    except OverflowError:
        return math.inf
