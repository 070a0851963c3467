"""The loss that training minimizes: the sum over all tokens of a batch that the model is trained to predict."""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Packed
from seft.distill import Distillation
from seft.errors import ConfigError
from seft.loss import TokenLoss


class Objective(Protocol):
    """Function from a batch to its summed loss."""

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """Return the sum of the losses of all predicted tokens. It is differentiable in the trained weights."""
        ...


def cross_entropy(model: Any) -> Objective:
    """Return the objective without a teacher in memory: cross-entropy with the actual next token, in nats.

    In retained text it is the divergence from the recorded predictions.
    """
    losses = TokenLoss(model)
    return lambda batch: losses(batch).sum()


def make_objective(model: Any, config: RepairConfig, teacher: Any | None) -> Objective:
    """Return the objective that `config` describes: distillation if there is a teacher, else cross-entropy."""
    require_teacher(config, teacher)
    return cross_entropy(model) if teacher is None else Distillation(model, teacher, config)


def require_teacher(config: RepairConfig, teacher: object | None) -> None:
    """Raise ConfigError if `config` distills and there is no teacher, or if it does not and there is one."""
    if config.distills and teacher is None:
        way_out = "Give the original model, from before pruning, or set distill_weight and hidden_weight to 0."
        raise ConfigError("teacher", "must be given for distillation", None, way_out)
    if teacher is not None and not config.distills:
        value = teacher if isinstance(teacher, str) else type(teacher).__name__
        way_out = "Set distill_weight or hidden_weight, or give no teacher."
        raise ConfigError("teacher", "must not be set without distillation", value, way_out)
