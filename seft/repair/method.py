"""The interface of every repair method, and the input that a method gets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Int
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, PruneConfig, RepairConfig
from seft.data.text import windows
from seft.errors import DataError
from seft.fit import Shape
from seft.models.targets import Target
from seft.report import Evolved, Reporter


@dataclass(frozen=True, slots=True)
class Work:
    """Input of a repair method: a frozen model, its targets by name, the configuration, and the text.

    A target is a linear layer that is pruned. The text is one row of tokens. `pruned` is how the targets were pruned.
    None means that this is unknown and that they follow no pattern. `check` returns the loss of the present weights on
    windows that are not trained on; it is given if the configuration swaps zeros and nonzeros.
    """

    model: Any
    targets: Mapping[str, Target]
    config: RepairConfig
    text: Int[Tensor, "tokens"]
    pruned: PruneConfig | None
    check: Callable[[], float] | None = None

    def calibration(self) -> Int[Tensor, "windows tokens"]:
        """Return the windows of the text that the pruning settings ask for; none if they need no text.

        Raises DataError if the text is too short.
        """
        if self.pruned is None or not self.pruned.text_users:
            return self.text[:0, None]
        if len(self.text) < self.pruned.tokens:
            raise DataError(
                f"the training text must have at least {self.pruned.tokens} tokens, the length of a window of the"
                f" pruning that repeats during the repair; it has {len(self.text)}. Give more text, or prune with fewer"
                " tokens per window."
            )
        return windows(self.text, self.pruned.tokens, self.pruned.samples, self.pruned.order, self.pruned.seed)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Rows and columns of each target by name."""
        return {name: target.shape for name, target in self.targets.items()}

    @property
    def pattern(self) -> Pattern:
        """Sparsity pattern of the targets."""
        return self.pruned.pattern if self.pruned else UNSTRUCTURED


class Method(Protocol):
    """Trains the targets of one model. Between two calls the model computes with the weights trained so far.

    The weight matrices may contain other weights until `finish`, so read them after it.
    """

    def __init__(self, work: Work) -> None: ...

    @property
    def trained_values(self) -> int:
        """Number of trained values."""

    @property
    def grown_zeros(self) -> int:
        """Number of weights that were zero when pruning ended and are nonzero now. Also valid after `finish`."""

    def before_step(self, step: int, /) -> None:  # noqa: ARG002 (some methods use it)
        """Prepare a step, if needed. The loop calls it before the first micro-batch of the step."""
        return

    def after_micro_batch(self) -> None:
        """Do what must wait for the end of a backward pass, if anything."""
        return

    def take_gradients(self) -> list[Tensor]:
        """Return the gradients accumulated since the last call, always in the same order, and reset them.

        If the backward pass has already taken the optimizer step of a linear, its gradient is replaced by its norm.
        """

    def update(self, gradients: Sequence[Tensor], rate: float, scale: float) -> None:
        """Take one optimizer step with these gradients. Clipping has already multiplied them by `scale`."""

    def evolve(self, step: int, /) -> Evolved | None:  # noqa: ARG002 (some methods use it)
        """Run the topology event that is due after a step. Returns None if none is due."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that are needed to resume. Most of them are the tensors in use, not copies.

        The key of a tensor is the name of what is trained, a slash, and the name of the part.
        """

    def resume(self, tensors: Mapping[str, Tensor], /) -> None:
        """Replace the present state by saved tensors. Possible at any step."""

    def finish(self, report: Reporter, /) -> None:
        """Restore the model's modules, with the trained weights in them."""
