"""How this library says what it is doing, and how it is stopped.

Every long function takes a `Reporter`, a callable that is given one of the reports below now and then. A reporter
that raises `seft.errors.Cancelled` ends the work. The library knows nothing of jobs, queues or bars.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
class Evolved:
    """One event of the topology, counted over all target linears.

    `dropped` left the active set and got their base back, `grown` joined it, `reactivated` of these were zeros,
    `pruned` nonzeros became zero to keep the budget.
    """

    step: int
    dropped: int
    grown: int
    reactivated: int
    pruned: int


Report = Progress | Unseen | Reconstructed | Step | Evolved
Reporter = Callable[[Report], None]


def silent(_: Report) -> None:
    """A reporter that listens to nothing."""
