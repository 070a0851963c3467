"""What training makes small: of a batch, the sum over its trained predictions."""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from seft.config import RepairConfig
from seft.data.packing import Packed
from seft.distill import Distillation
from seft.errors import ConfigError
from seft.loss import TokenLoss


class Objective(Protocol):
    """Batch in, loss out."""

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """The sum over the trained predictions, differentiable in the weights that are trained."""
        ...


class CrossEntropy:
    """Nats of the tokens that were there."""

    def __init__(self, model: Any) -> None:
        self._losses = TokenLoss(model)

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """See `Objective`."""
        return self._losses(batch).sum()


def make_objective(model: Any, config: RepairConfig, teacher: Any | None) -> Objective:
    """What `config` asks for."""
    require_teacher(config, teacher)
    return CrossEntropy(model) if teacher is None else Distillation(model, teacher, config)


def require_teacher(config: RepairConfig, teacher: object | None) -> None:
    """ConfigError where `config` wants a teacher and there is none, or the other way round."""
    if config.distills and teacher is None:
        way_out = "Name the dense model, or set distill_weight and hidden_weight to 0."
        raise ConfigError("teacher", "must be given to distil from", None, way_out)
    if teacher is not None and not config.distills:
        seen = teacher if isinstance(teacher, str) else type(teacher).__name__
        way_out = "Set distill_weight or hidden_weight, or leave the teacher out."
        raise ConfigError("teacher", "must be left out where nothing is learnt from it", seen, way_out)
