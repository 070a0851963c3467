"""How this library says what it is doing, and how it is stopped.

Every long function takes a `Reporter`, a callable that is given one of the reports below now and then. A reporter
that raises `seft.errors.Cancelled` ends the work. The library knows nothing of jobs, queues or bars.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum


class Phase(StrEnum):
    """What is being done, in the order of a whole run."""

    LOADING = "loading"
    PRUNING = "pruning"
    RECONSTRUCTING = "reconstructing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units (blocks, windows, steps) of a phase are finished."""

    phase: Phase
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Unseen:
    """So many matrices of a block's experts met no token of calibration; they are pruned by magnitude."""

    block: int
    matrices: int


@dataclass(frozen=True, slots=True)
class Reconstructed:
    """A part of a block was tuned; its squared error before and after, as a share of the dense part's output."""

    block: int
    part: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: mean loss in nats per token, the rate used, speed."""

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Judged:
    """The mean loss on held-out text after a step, in nats per token."""

    step: int
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class Change:
    """What an event of the topology did to one linear.

    `dropped` left the active set and got their base back, `grown` joined it, `reactivated` of these were zeros,
    `pruned` nonzeros became zero to keep the budget.
    """

    dropped: int
    grown: int
    reactivated: int
    pruned: int


@dataclass(frozen=True, slots=True)
class Evolved:
    """One event of the topology: the change of each target linear by its name, and their sums."""

    step: int
    dropped: int
    grown: int
    reactivated: int
    pruned: int
    layers: Mapping[str, Change] = field(repr=False)

    @classmethod
    def of(cls, step: int, layers: Mapping[str, Change]) -> "Evolved":
        """With the sums."""
        sums = {each.name: sum(getattr(change, each.name) for change in layers.values()) for each in fields(Change)}
        return cls(step, **sums, layers=layers)


Report = Progress | Unseen | Reconstructed | Step | Evolved | Judged
Reporter = Callable[[Report], None]


def silent(_: Report) -> None:
    """A reporter that listens to nothing."""
