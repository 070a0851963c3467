"""Distillation: the pruned model learns from a dense one, from what it predicts and from what its blocks put out.

The teacher's logits are made for as few predictions at a time as the student's, so neither stand whole in memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Packed
from seft.errors import ConfigError
from seft.loss import Criterion, cross_entropy, losses
from seft.models.predictor import Predictor

TOP = 64
"""So many of the teacher's largest logits are learnt from: the rest of a vocabulary carries little but time."""


class Distillation:
    """Cross-entropy mixed with the divergence from the teacher's predictions, and SquareHead beside them.

    `distill_weight` is the share of the divergence in the mix, `hidden_weight` the factor of SquareHead. ConfigError
    where the teacher is no model of the same shape.
    """

    def __init__(self, model: Any, teacher: Any, config: RepairConfig) -> None:
        self._student, self._teacher = Predictor(model), Predictor(teacher)
        self._weight, self._hidden = config.distill_weight, config.hidden_weight
        for what in ("vocab_size", "hidden_size", "num_hidden_layers"):
            own, other = (getattr(each.config, what, None) for each in (model, teacher))
            if own != other:
                rule = f"must have the {what} of the pruned model, {own}"
                raise ConfigError("teacher", rule, other, "Take the model that was pruned.")

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """See `Objective`."""
        with torch.no_grad():
            taught = self._teacher.rows(batch, blocks=self._hidden > 0)
        rows = self._student.rows(batch, blocks=self._hidden > 0)
        loss = losses(self._student, rows.last, self._criterion(batch, taught.last)).sum()
        if not self._hidden:
            return loss
        return loss + self._hidden * square_head(rows.blocks, taught.blocks, batch.trained.sum(1))

    def _criterion(self, batch: Packed, taught: Float[Tensor, "predictions width"]) -> Criterion:
        plain = cross_entropy(batch)
        if not self._weight:
            return plain

        def mixed(logits: Tensor, some: slice) -> Tensor:
            with torch.no_grad():
                wanted = self._teacher.logits(taught[some])
            return (1 - self._weight) * plain(logits, some) + self._weight * top_divergence(logits, wanted)

        return mixed


def top_divergence(
    logits: Float[Tensor, "predictions vocabulary"], wanted: Float[Tensor, "predictions vocabulary"]
) -> Float[Tensor, "predictions"]:
    """Kullback-Leibler divergence of the student from the teacher, in nats, at temperature 1.

    The teacher's distribution is that over its `TOP` largest logits; the student's is over the whole vocabulary, so
    that what it gives to other tokens is lost.
    """
    top = wanted.topk(min(TOP, wanted.shape[1]))
    teacher = top.values.log_softmax(1)
    student = logits.log_softmax(1).gather(1, top.indices)
    return (teacher.exp() * (teacher - student)).sum(1)


def square_head(
    blocks: Sequence[Float[Tensor, "predictions cols"]],
    wanted: Sequence[Float[Tensor, "predictions cols"]],
    counts: Int[Tensor, "windows"],
) -> Float[Tensor, ""]:
    """The squared distance of each block's outputs to the teacher's, divided by their squared size (arXiv 2310.06927).

    The mean over blocks, for each window, times its predictions: `counts` of them lie in each window. [ours] Divided
    window by window, so that micro-batches change nothing.
    """
    shares = []
    for own, other in zip(blocks, wanted, strict=True):
        exact = torch.promote_types(own.dtype, torch.float32)
        distance = (own.to(exact) - other.to(exact)).square().sum(1)
        size = other.to(exact).square().sum(1)
        sums = (torch.split(each, counts.tolist()) for each in (distance, size))
        for count, far, large in zip(counts.tolist(), *sums, strict=True):
            if count:
                shares.append(count * far.sum() / large.sum())
    return torch.stack(shares).sum() / len(blocks)
