"""Computes the perplexity of a model on text."""

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
    """Return exp of the mean loss, or infinity if the result is too large for a float.

    Raises EvaluateError if a loss is not finite.
    """
    try:
        return math.exp(mean_loss(model, windows, report))
    except OverflowError:
        return math.inf


@torch.no_grad()
def mean_loss(model: Any, windows: Packed | Int[Tensor, "windows tokens"], report: Reporter = silent) -> float:
    """Return the mean loss over all predicted tokens, in nats.

    Raises EvaluateError if a loss is not finite.
    """
    windows = Packed.of(windows)
    require_known_tokens(windows.tokens, model)
    loss = TokenLoss(model)
    total = 0.0
    for done, window in enumerate(windows.split(1), start=1):
        summed = loss(window.to(model.device)).double().mean().item() * window.predictions
        if not math.isfinite(summed):
            raise EvaluateError(
                f"losses must be finite; sequence {done} has {summed}. The weights of the model are broken."
                " Prune it less, or choose a different model."
            )
        total += summed
        report(Progress(Phase.EVALUATING, done, len(windows)))
    return total / windows.predictions
