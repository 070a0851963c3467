"""Distillation: the pruned model (the student) learns from the dense model (the teacher).

The student learns from the teacher's predictions and block outputs. The logits of both are computed for few predictions
at a time, so they are never in memory completely.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Packed
from seft.errors import ConfigError
from seft.fit import require_teacher_fit
from seft.loss import Criterion, TokenLoss, cross_entropy, losses, top_divergence, with_recorded
from seft.models.predictor import Predictor

TOP_LOGITS = 64
"""Number of the largest teacher logits, which are used per prediction. The others cost time and add little."""


Objective = Callable[[Packed], Float[Tensor, ""]]
"""Function from a batch to the sum of the losses of its predicted tokens, differentiable in the trained weights."""


class Distillation:
    """Objective that mixes cross-entropy with the divergence from the teacher, and adds SquareHead.

    SquareHead compares the block outputs. `distill_weight` is the weight of the divergence in the mix, and
    `hidden_weight` the factor of SquareHead. Raises ConfigError if the teacher has another shape than the model.
    """

    def __init__(self, model: Any, teacher: Any, config: RepairConfig) -> None:
        self._student, self._teacher = Predictor(model), Predictor(teacher)
        self._weight, self._hidden = config.distill_weight, config.hidden_weight
        require_same_shape(model, teacher)

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """Return the loss of a batch, as `Objective` describes."""
        with torch.no_grad():
            teacher_rows = self._teacher.rows(batch, blocks=self._hidden > 0)
        rows = self._student.rows(batch, blocks=self._hidden > 0)
        loss = losses(self._student, rows.last, with_recorded(batch, self._criterion(batch, teacher_rows.last))).sum()
        if not self._hidden:
            return loss
        weights = None if batch.teacher is None else batch.teacher.weights
        return loss + self._hidden * square_head(rows.blocks, teacher_rows.blocks, batch.trained.sum(1), weights)

    def _criterion(self, batch: Packed, teacher_rows: Float[Tensor, "predictions width"]) -> Criterion:
        plain = cross_entropy(batch)
        if not self._weight:
            return plain

        def mixed(logits: Tensor, some: slice) -> Tensor:
            with torch.no_grad():
                target = self._teacher.logits(teacher_rows[some]).log_softmax(1)
                top = target.topk(min(TOP_LOGITS, target.shape[1]))
            divergence = top_divergence(logits, top.indices, top.values)
            return (1 - self._weight) * plain(logits, some) + self._weight * divergence

        return mixed


def require_same_shape(model: Any, teacher: Any) -> None:
    """Raise ConfigError if the teacher cannot be the dense model from which `model` was made."""
    settings = ("vocab_size", "hidden_size", "num_hidden_layers")
    own, other = (
        {name: getattr(each.config.get_text_config(), name, None) for name in settings} for each in (model, teacher)
    )
    require_teacher_fit(own, other)


def square_head(
    blocks: Sequence[Float[Tensor, "predictions cols"]],
    target: Sequence[Float[Tensor, "predictions cols"]],
    counts: Int[Tensor, "windows"],
    weights: Float[Tensor, "windows"] | None = None,
) -> Float[Tensor, ""]:
    """Return the squared distance of the block outputs to the teacher's, divided by the teacher's squared norm.

    This is SquareHead (arXiv 2310.06927). The mean over the blocks is computed per window and multiplied by the number
    of the window's predicted tokens, `counts`, and by its weight in the loss, 1 if `weights` is None. [ours] The
    division is done per window, so that the result does not depend on the size of micro-batches.
    """
    numbers = counts.tolist()
    factors = numbers if weights is None else (counts * weights).tolist()
    terms = []
    for own, other in zip(blocks, target, strict=True):
        exact = torch.promote_types(own.dtype, torch.float32)
        distance = (own.to(exact) - other.to(exact)).square().sum(1)
        size = other.to(exact).square().sum(1)
        sums = (torch.split(each, numbers) for each in (distance, size))
        for factor, far, large in zip(factors, *sums, strict=True):
            if factor:
                terms.append(factor * far.sum() / large.sum())
    return torch.stack(terms).sum() / len(blocks)


def make_objective(model: Any, config: RepairConfig, teacher: Any | None) -> Objective:
    """Return the objective that `config` describes: distillation if there is a teacher, else the sum of `TokenLoss`."""
    require_teacher(config, teacher)
    if teacher is not None:
        return Distillation(model, teacher, config)
    token_losses = TokenLoss(model)
    return lambda batch: token_losses(batch).sum()


def require_teacher(config: RepairConfig, teacher: object | None) -> None:
    """Raise ConfigError if `config` distills and there is no teacher, or if it does not and there is one."""
    if config.distills and teacher is None:
        way_out = "Give the original model, from before pruning, or set distill_weight and hidden_weight to 0."
        raise ConfigError("teacher", "must be given for distillation", None, way_out)
    if teacher is not None and not config.distills:
        value = teacher if isinstance(teacher, str) else type(teacher).__name__
        way_out = "Set distill_weight or hidden_weight, or give no teacher."
        raise ConfigError("teacher", "must not be set without distillation", value, way_out)
