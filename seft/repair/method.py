"""What every method of repair can do, whatever it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from seft.config import Pattern, RepairConfig
from seft.report import Evolved
from seft.targets import Target


@dataclass(frozen=True, slots=True)
class Work:
    """What a method is given: a frozen model, its pruned targets by name, what was asked for, the targets' pattern."""

    model: Any
    targets: Mapping[str, Target]
    config: RepairConfig
    pattern: Pattern


class Method(Protocol):
    """Trains the targets of one model. The model runs as trained so far at every moment between two calls."""

    def __init__(self, work: Work) -> None: ...

    @property
    def trained(self) -> int:
        """How many values are trained."""

    @property
    def grown_zeros(self) -> int:
        """Positions of the targets that were zero at the start and are nonzero now."""

    def open(self, step: int, /) -> None:
        """Before the first micro-batch of a step."""

    def take_gradients(self) -> list[Tensor]:
        """Those of the trained values that have come together since the last call, always in the same order."""

    def update(self, gradients: Sequence[Tensor], rate: float) -> None:
        """One optimizer step with these gradients."""

    def evolve(self, step: int, /) -> Evolved | None:
        """After a step: the event of the topology that is due, if there is one."""

    def tensors(self) -> dict[str, Tensor]:
        """All that makes the trained weights out of the pruned ones, and all that the next step depends on; no copies.

        Names are those of targets, then a slash and what it is.
        """

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Go on from saved tensors; the weights are as pruning left them."""

    def finish(self) -> None:
        """Leave the model's modules as they came, with the trained weights in them."""
