"""The interface of every repair method, and its input."""

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
    """The input of a method: a frozen model, its targets by name, the configuration, and the text in one row.

    `pruned` is how the targets were pruned. None means that this is unknown and that they follow no pattern.
    """

    model: Any
    targets: Mapping[str, Target]
    config: RepairConfig
    text: Int[Tensor, "tokens"]
    pruned: PruneConfig | None

    @property
    def pattern(self) -> Pattern:
        """Pattern of the targets."""
        return self.pruned.pattern if self.pruned else UNSTRUCTURED


class Method(Protocol):
    """Trains the targets of one model. Between two calls the model always runs with the weights trained so far."""

    def __init__(self, work: Work) -> None: ...

    @property
    def trained_values(self) -> int:
        """Number of trained values."""

    @property
    def grown_zeros(self) -> int:
        """Number of positions that were zero at the start and are nonzero now. Also valid after `finish`."""

    def before_step(self, step: int, /) -> None:
        """Prepare a step. Called before its first micro-batch."""

    def take_gradients(self) -> list[Tensor]:
        """Return and reset the gradients accumulated since the last call, always in the same order."""

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take one optimizer step with these gradients, which clipping has multiplied by `scale`."""

    def evolve(self, step: int, /) -> Evolved | None:
        """Run the topology event due after a step. Returns None if none is due."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all that turns the pruned weights into the trained ones, and all that the next step depends on.

        Not copies. A name is the target's name, a slash, and the part.
        """

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Continue from saved tensors, which replace the present ones at any step."""

    def finish(self, report: Reporter, /) -> None:
        """Restore the model's modules, with the trained weights in them."""
