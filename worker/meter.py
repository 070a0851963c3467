"""Compute the progress of a job from its stages and the relative time of each stage."""

from collections.abc import Sequence
from enum import StrEnum

from core.states import Phase


class Stage(StrEnum):
    """A stage of a job. It is finer than the phases that the API shows."""

    LOADING = "loading"
    WRITING = "writing"
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
        """The phase that the API reports for this stage."""
        return Phase.EVALUATING if self in {Stage.DENSE, Stage.PRUNED, Stage.REPAIRED} else Phase(self)


WEIGHTS = {
    Stage.LOADING: 3,
    Stage.WRITING: 5,
    Stage.DENSE: 6,
    Stage.PRUNING: 25,
    Stage.RECONSTRUCTING: 25,
    Stage.PRUNED: 6,
    Stage.TRAINING: 45,
    Stage.REPAIRED: 6,
    Stage.EXPORTING: 6,
    Stage.UPLOADING: 3,
}
"""Relative time of each stage, in percent of a typical job."""
ALL_STAGES = tuple(Stage)
"""All stages, in the order in which a job runs them."""


def stages(*, writes: bool, prunes: bool, reconstructs: bool, repairs: bool) -> tuple[Stage, ...]:
    """Return the stages that a job runs, in order.

    `writes` is true if text is retained. `prunes` is false if the sparsity rises during the training.
    """
    skipped = set() if reconstructs else {Stage.RECONSTRUCTING}
    skipped |= set() if writes else {Stage.WRITING}
    skipped |= set() if prunes else {Stage.PRUNING, Stage.PRUNED}
    skipped |= set() if repairs else {Stage.TRAINING, Stage.REPAIRED}
    return tuple(stage for stage in Stage if stage not in skipped)


def progress(stages: Sequence[Stage], stage: Stage, fraction: float) -> float:
    """Return the fraction (0 to 1) of the whole job that is done when `fraction` of `stage` is done."""
    before = sum(WEIGHTS[each] for each in stages[: stages.index(stage)])
    return (before + fraction * WEIGHTS[stage]) / sum(WEIGHTS[each] for each in stages)
