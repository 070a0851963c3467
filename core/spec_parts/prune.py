"""How a job prunes its model."""

from pydantic import Field

from core.request_fields import WITHIN_CONTEXT, Integer, Number, Spec
from seft.config import DEFAULT_PRUNER, Compare, PruneMethod, PruneSchedule, Refinement


class CalibrationSpec(Spec):
    """The calibration text: pruning measures on it how important each weight is."""

    samples: Integer = Field(default=128, ge=1, le=4096, description="Number of sequences of calibration text.")
    tokens: Integer = Field(
        default=2048,
        ge=2,
        le=131072,
        description=f"Tokens per sequence of calibration text. {WITHIN_CONTEXT}",
    )


class PruneSpec(Spec):
    """How the model is pruned."""

    method: PruneMethod = Field(
        default=DEFAULT_PRUNER,
        description="Method of pruning. It chooses which weights become zero. `sparsegpt`, `alps` and `admm` also"
        " correct the remaining weights.",
    )
    compare: Compare = Field(
        default=Compare.AUTO,
        description="Compare the weights of one `row`, of one `layer`, or, with the schedule `gradual`, of the whole"
        " `model`. `auto` follows the paper of the method. With `gradual` it is `model` if no `pattern` or `allocation`"
        " determines the zeros of each layer, else `layer`. With `row`, the numbers of zeros of two rows of"
        " a layer differ by at most one.",
    )
    refine: Refinement = Field(
        default=Refinement.NONE, description="`dsnot` improves the choice of zeros after pruning. `none` keeps it."
    )
    reconstruct_epochs: Integer = Field(
        default=0,
        ge=0,
        le=100,
        description="Passes over the calibration text that train each block to match the dense block; 0 is off.",
    )
    reconstruct_learning_rate: Number = Field(
        default=2e-4, ge=1e-8, le=1.0, description="Learning rate of the passes of `reconstruct_epochs`."
    )
    schedule: PruneSchedule = Field(
        default=PruneSchedule.ONE_SHOT,
        description="`one_shot` prunes before training. `gradual` raises the sparsity while all nonzeros train; it"
        " needs the repair method `seft` with the density `all`.",
    )
    rise: Number = Field(
        default=0.7, ge=0.0, le=1.0, description="Fraction of the steps in which the sparsity rises, with `gradual`."
    )
    rise_interval: Integer = Field(
        default=2, ge=1, le=1_000_000, description="Steps between two increases of the sparsity, with `gradual`."
    )
    calibration: CalibrationSpec = Field(
        default_factory=CalibrationSpec,
        description="Calibration text: pruning measures the importance of weights on it.",
    )

    @property
    def gradual(self) -> bool:
        """True if the sparsity rises while the model trains, so that there is no phase of pruning."""
        return self.schedule is PruneSchedule.GRADUAL
