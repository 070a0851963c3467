"""Progress reports, and the way in which a caller stops the work.

Every long function takes a `Reporter` and calls it regularly with one of the reports below. A reporter stops the work
by raising `seft.errors.Cancelled`. Jobs, queues and progress bars are the task of the caller.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum


class Phase(StrEnum):
    """Phases of a run, in their order."""

    LOADING = "loading"
    WRITING = "writing"
    PRUNING = "pruning"
    RECONSTRUCTING = "reconstructing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a phase: `done` of `total` units (blocks, windows or steps) are finished."""

    phase: Phase
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ZerosFound:
    """The zeros of a model that another tool pruned.

    `sparsity` is the fraction of zeros in all linears that are pruned. `lowest` and `highest` are the lowest and the
    highest fraction in one linear. `linears` is the number of linears, and `dense` the number without zeros. `pattern`
    is the N:M pattern that all linears follow, or `unstructured`.
    """

    sparsity: float
    lowest: float
    highest: float
    linears: int
    dense: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """Number of expert matrices of a block that received no calibration token. They are pruned by magnitude."""

    block: int
    matrices: int


@dataclass(frozen=True, slots=True)
class Reconstructed:
    """Squared error of a part of a block before and after reconstruction.

    It is a fraction of the squared outputs of the dense part.
    """

    block: int
    part: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: mean loss in nats per token, learning rate and speed."""

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Mean loss on held-out text after a step, in nats per token."""

    step: int
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class Change:
    """Change of one linear by a topology event, in numbers of weights.

    `dropped` weights are no longer trained and have their base value again. `grown` weights are trained from now on;
    `reactivated` of them were zero. `pruned` nonzeros became zero to keep the number of nonzeros.
    """

    dropped: int
    grown: int
    reactivated: int
    pruned: int


@dataclass(frozen=True, slots=True)
class Evolved:
    """One topology event, after a training step: the change of each linear by name, and the sums over all.

    `sparsity` is the fraction of zeros in all linears after the event. `undone` is True if the event made a held-out
    loss worse and was undone; the counts then describe the undone event.
    """

    step: int
    dropped: int
    grown: int
    reactivated: int
    pruned: int
    sparsity: float
    undone: bool
    layers: Mapping[str, Change] = field(repr=False)

    @classmethod
    def of(cls, step: int, layers: Mapping[str, Change], sparsity: float, *, undone: bool = False) -> "Evolved":
        """Return the report of the event after `step`, with the sums over `layers`."""
        sums = {each.name: sum(getattr(change, each.name) for change in layers.values()) for each in fields(Change)}
        return cls(step, **sums, sparsity=sparsity, undone=undone, layers=layers)


Report = Progress | ZerosFound | Unseen | Reconstructed | Step | Evolved | Evaluated
Reporter = Callable[[Report], None]


def about(seconds: float) -> str:
    """Return a time in words, rounded up: `about 12 s`, `about 3 min`, `about 2 h 05 min` or `about 3 d 4 h`."""
    if seconds < 60:
        return f"about {max(1, math.ceil(seconds))} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    if hours >= 48:
        return f"about {hours // 24} d {hours % 24} h"
    return f"about {hours} h {minutes:02d} min" if hours else f"about {minutes} min"


def silent(_: Report) -> None:
    """Ignore a report. For callers that need no progress."""
