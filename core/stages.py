"""The stages of a job, in the order in which it runs them. They are finer than the phases that the API shows."""

from enum import StrEnum

from core.spec_parts import RepairMethod
from core.specs import JobSpec
from core.states import Phase


class Stage(StrEnum):
    """A stage of a job. The phase `evaluating` has one stage per model: `dense`, `pruned` and `repaired`."""

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


def stages_of(spec: JobSpec) -> tuple[Stage, ...]:
    """Return the stages that a job runs, in order. A job that only prunes trains nothing and retains nothing."""
    skipped = set() if spec.reconstructs else {Stage.RECONSTRUCTING}
    skipped |= set() if spec.prunes else {Stage.PRUNING}
    skipped |= set() if spec.repair.retains else {Stage.WRITING}
    skipped |= {Stage.PRUNED} if spec.prune.gradual else set()
    skipped |= {Stage.TRAINING, Stage.REPAIRED} if spec.repair.method is RepairMethod.NONE else set()
    return tuple(stage for stage in Stage if stage not in skipped)
