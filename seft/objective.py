"""What training makes small: of a batch, the sum over its trained predictions."""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from seft.loss import TokenLoss
from seft.packing import Packed


class Objective(Protocol):
    """Batch in, loss out. `name` tells it from others, so that a saved state is not gone on from under another one."""

    name: str

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """The sum over the trained predictions, differentiable in the weights that are trained."""
        ...


class CrossEntropy:
    """Nats of the tokens that were there."""

    name = "cross-entropy"

    def __init__(self, model: Any) -> None:
        self._losses = TokenLoss(model)

    def __call__(self, batch: Packed) -> Float[Tensor, ""]:
        """See `Objective`."""
        return self._losses(batch).sum()
