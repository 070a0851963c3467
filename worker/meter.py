"""How far a job is: the stages of its run, and how long each of them takes compared with the others."""

from collections.abc import Sequence
from enum import StrEnum

from core.states import Phase


class Stage(StrEnum):
    """A part of a run."""

    LOADING = "loading"
    DENSE = "dense"
    PRUNING = "pruning"
    RECONSTRUCTING = "reconstructing"
    PRUNED = "pruned"
    TRAINING = "training"
    REPAIRED = "repaired"
    EXPORTING = "exporting"
    UPLOADING = "uploading"

    @property
    def phase(self) -> Phase:
        """What it is called outside."""
        return Phase.EVALUATING if self in {Stage.DENSE, Stage.PRUNED, Stage.REPAIRED} else Phase(self)


WEIGHTS = {
    Stage.LOADING: 3,
    Stage.DENSE: 6,
    Stage.PRUNING: 25,
    Stage.RECONSTRUCTING: 25,
    Stage.PRUNED: 6,
    Stage.TRAINING: 45,
    Stage.REPAIRED: 6,
    Stage.EXPORTING: 6,
    Stage.UPLOADING: 3,
}
"""Rough shares of the time."""
WHOLE = tuple(Stage)
"""All stages, in their order."""


def stages(*, reconstructs: bool, repairs: bool) -> tuple[Stage, ...]:
    """Those of a job, in their order."""
    left_out = set() if reconstructs else {Stage.RECONSTRUCTING}
    left_out |= set() if repairs else {Stage.TRAINING, Stage.REPAIRED}
    return tuple(stage for stage in Stage if stage not in left_out)


def progress(stages: Sequence[Stage], stage: Stage, share: float) -> float:
    """The share 0..1 of the whole that is done when `share` of `stage` is."""
    before = sum(WEIGHTS[each] for each in stages[: stages.index(stage)])
    return (before + share * WEIGHTS[stage]) / sum(WEIGHTS[each] for each in stages)
