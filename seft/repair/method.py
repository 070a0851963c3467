"""What every method of repair can do, whatever it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, PruneConfig, RepairConfig
from seft.models.targets import Target
from seft.report import Evolved, Reporter


@dataclass(frozen=True, slots=True)
class Work:
    """What a method is given: a frozen model, its targets by name, what was asked for, and the text in one row.

    `pruned` is how the targets were pruned; None where that is not known and they are in no pattern.
    """

    model: Any
    targets: Mapping[str, Target]
    config: RepairConfig
    text: Int[Tensor, "tokens"]
    pruned: PruneConfig | None

    @property
    def pattern(self) -> Pattern:
        """What the targets are in."""
        return self.pruned.pattern if self.pruned else UNSTRUCTURED


class Method(Protocol):
    """Trains the targets of one model, which runs as trained so far at every moment between two calls."""

    def __init__(self, work: Work) -> None: ...

    @property
    def trained(self) -> int:
        """How many values are trained."""

    @property
    def grown_zeros(self) -> int:
        """Positions of the targets that were zero at the start and are nonzero now; good after `finish`, too."""

    def open(self, step: int, /) -> None:
        """Before the first micro-batch of a step."""

    def take_gradients(self) -> list[Tensor]:
        """Those of the trained values that have come together since the last call, always in the same order."""

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """One optimizer step with these gradients, which clipping has multiplied by `scale`."""

    def evolve(self, step: int, /) -> Evolved | None:
        """After a step: the event of the topology that is due, if there is one."""

    def tensors(self) -> dict[str, Tensor]:
        """All that makes the trained weights out of the pruned ones, and all that the next step depends on; no copies.

        Names are those of targets, then a slash and what it is.
        """

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Go on from saved tensors instead of the present ones, whatever has been trained meanwhile."""

    def finish(self, report: Reporter, /) -> None:
        """Leave the model's modules as they came, with the trained weights in them."""
