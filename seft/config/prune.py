"""Settings of pruning."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from typing_extensions import Doc

from seft.config.checks import ROUNDING, require_at_least, require_between
from seft.config.pattern import UNSTRUCTURED, Pattern
from seft.errors import ConfigError


class PruneMethod(StrEnum):
    """Pruning method: it chooses which weights become zero, and may correct the others."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    RIA = "ria"
    SPARSEGPT = "sparsegpt"
    ALPS = "alps"
    ADMM = "admm"


WITHOUT_TEXT = frozenset({PruneMethod.MAGNITUDE})
"""Methods that read no calibration text."""


class PruneSchedule(StrEnum):
    """When weights become zero: all before training, or more and more while the model trains."""

    ONE_SHOT = "one_shot"
    GRADUAL = "gradual"


class Compare(StrEnum):
    """The weights among which importance is compared: those of a row, of a linear, or of all linears of the model.

    `auto` is the choice of the method's paper. With the schedule `gradual` it is `model`, or `layer` with an N:M
    pattern or an allocation. `model` is possible with `gradual` only.
    """

    AUTO = "auto"
    ROW = "row"
    LAYER = "layer"
    MODEL = "model"


class Allocation(StrEnum):
    """How the zeros are distributed over the linears that are pruned.

    `auto` is `uniform` for methods other than `admm` and `alps`, and with the schedule `gradual`. It is also `uniform`
    with an N:M pattern or `compare: row`, because rows must then not differ in their numbers of zeros. Otherwise it is
    `curvature`.
    """

    AUTO = "auto"
    UNIFORM = "uniform"
    CURVATURE = "curvature"
    OWL = "owl"
    ALPHAPRUNING = "alphapruning"


class Refinement(StrEnum):
    """How the choice of zeros is improved after the pruning method made it."""

    NONE = "none"
    DSNOT = "dsnot"


class SparsityOf(StrEnum):
    """What `sparsity` is a fraction of: the weights of the linears that are pruned, or all parameters of the model."""

    TARGETS = "targets"
    MODEL = "model"


class CalibrationOrder(StrEnum):
    """Which windows of the calibration text are used: the first ones, or random ones drawn with the seed.

    A window is a sequence of tokens.
    """

    SEQUENTIAL = "sequential"
    RANDOM = "random"


DEFAULT_PRUNER = PruneMethod.ADMM
"""Pruning method of the library, the command line and the service if the user chooses none."""
MOST_SPARSE = 0.99
"""Largest allowed fraction of zeros in a linear."""
CURVATURE_TOKENS = 8192
"""Largest number of calibration tokens from which curvatures are computed. A longer window is used alone."""
_DEFAULTS = (Refinement.NONE, Allocation.UNIFORM)


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """Settings of pruning. With an N:M pattern, `sparsity` must be the sparsity of the pattern.

    Every linear layer in the decoder blocks is pruned, except routers. With the schedule `gradual`, no pruning method
    runs: the sparsity rises during the repair.
    """

    sparsity: Annotated[
        float,
        Doc("Fraction of weights set to zero. May be left out with an N:M pattern. 0 keeps the zeros of the model."),
    ]
    method: Annotated[
        PruneMethod,
        Doc("Method that chooses the weights that become zero. sparsegpt, alps and admm also correct the others."),
    ] = DEFAULT_PRUNER
    pattern: Annotated[Pattern, Doc("unstructured, or N:M, for example 2:4: at most N nonzeros in every M inputs.")] = (
        UNSTRUCTURED
    )
    compare: Annotated[
        Compare,
        Doc(
            "Weights that are compared with each other: those of a row, of a layer, or of the model (with gradual"
            " only). With row, all rows of a layer have the same number of zeros, or differ by one. auto is the choice"
            " of the method's paper, and model with gradual if possible."
        ),
    ] = Compare.AUTO
    refine: Annotated[
        Refinement, Doc("How the choice of zeros is improved. dsnot swaps zeros and nonzeros to lower a layer's error.")
    ] = Refinement.NONE
    allocation: Annotated[
        Allocation,
        Doc(
            "How the zeros are distributed over the layers. auto: curvature for admm and alps if rows may differ in"
            " zeros and the schedule is one_shot, else uniform."
        ),
    ] = Allocation.AUTO
    sparsity_of: Annotated[
        SparsityOf, Doc("What sparsity is a fraction of: weights of the target linears, or all of the model.")
    ] = SparsityOf.TARGETS
    schedule: Annotated[
        PruneSchedule, Doc("one_shot prunes before training. gradual raises the sparsity while the model trains.")
    ] = PruneSchedule.ONE_SHOT
    rise: Annotated[float, Doc("Fraction of the training steps in which the sparsity rises, with gradual.")] = 0.7
    rise_interval: Annotated[int, Doc("Steps between two increases of the sparsity, with gradual.")] = 2
    samples: Annotated[int, Doc("Number of calibration windows.")] = 128
    tokens: Annotated[
        int,
        Doc("Tokens per calibration window. If not given, 2048, or the context length of the model if that is less."),
    ] = 2048
    order: Annotated[CalibrationOrder, Doc("Which windows of the calibration text are used.")] = CalibrationOrder.RANDOM
    damping: Annotated[
        float,
        Doc("Fraction of the mean Hessian diagonal added to the diagonal. Used by sparsegpt and alps; admm adds 0.1."),
    ] = 0.01
    reconstruct_epochs: Annotated[
        int, Doc("Passes over the calibration windows when blocks are reconstructed after pruning. 0 is off.")
    ] = 0
    reconstruct_learning_rate: Annotated[float, Doc("Learning rate of the reconstruction.")] = 2e-4
    seed: Annotated[int, Doc("Random seed.")] = 0

    def __post_init__(self) -> None:
        if self.pattern.grouped and self.pattern.sparsity(None) > MOST_SPARSE:
            rule = f"must set at most {MOST_SPARSE:g} of the weights to zero"
            raise ConfigError("pattern", rule, str(self.pattern), "Use for example 2:4, which keeps 2 of 4 weights.")
        require_between("sparsity", self.sparsity, 0.0, MOST_SPARSE, "0.6 sets 60 % of the weights to zero.")
        require_at_least("samples", self.samples, 1)
        require_at_least("tokens", self.tokens, 2)
        require_between("damping", self.damping, 1e-6, 1.0, "0.01 is the published value.")
        require_between("reconstruct_epochs", self.reconstruct_epochs, 0, 100, "0 turns it off; 5 is a high value.")
        require_between("reconstruct_learning_rate", self.reconstruct_learning_rate, 1e-8, 1.0, "Try 2e-4.")
        require_between("rise", self.rise, 0.0, 1.0, "0.7 keeps the last 30 % of the steps for repair.")
        require_at_least("rise_interval", self.rise_interval, 1)
        if self.gradual:
            self._require_gradual_settings()
        elif self.compare is Compare.MODEL:
            way_out = "Use row or layer, or the schedule gradual."
            raise ConfigError("compare", "must not be model with the schedule one_shot", str(self.compare), way_out)
        elif self.method is PruneMethod.SPARSEGPT and self.compare is not Compare.AUTO:
            way_out = "sparsegpt compares within 128 columns at a time. Leave compare out, or use another method."
            raise ConfigError("compare", "must be auto for sparsegpt", str(self.compare), way_out)
        if self.pattern.grouped:
            self._require_group_settings()

    def rise_end(self, steps: int) -> int:
        """Return the step of `steps` after which the model has its final sparsity. It is 0 with `one_shot`."""
        return max(1, math.floor(self.rise * steps + ROUNDING)) if self.gradual else 0

    @property
    def gradual(self) -> bool:
        """True if the sparsity rises while the model trains."""
        return self.schedule is PruneSchedule.GRADUAL

    @property
    def resolved_allocation(self) -> Allocation:
        """The allocation, with `auto` replaced by its meaning."""
        if self.allocation is not Allocation.AUTO:
            return self.allocation
        possible = not self.gradual and not self.pattern.grouped and self.compare in {Compare.AUTO, Compare.LAYER}
        corrects = self.method in {PruneMethod.ADMM, PruneMethod.ALPS}
        return Allocation.CURVATURE if possible and corrects else Allocation.UNIFORM

    @property
    def compares_model(self) -> bool:
        """True if the weights of all linears are compared. The linears then differ in sparsity."""
        if self.compare is not Compare.AUTO:
            return self.compare is Compare.MODEL
        return self.gradual and not self.pattern.grouped and self.resolved_allocation is Allocation.UNIFORM

    @property
    def curvature_windows(self) -> int:
        """Number of calibration windows from which curvatures are computed. 0 if the allocation needs none."""
        needed = self.resolved_allocation is Allocation.CURVATURE and not self.keeps_zeros
        return min(self.samples, max(1, CURVATURE_TOKENS // self.tokens)) if needed else 0

    @property
    def text_users(self) -> list[str]:
        """Names of the settings that need calibration text; an empty list if none does."""
        if self.keeps_zeros:
            return []
        users = {
            self.method: self.method not in WITHOUT_TEXT and not self.gradual,
            Refinement.DSNOT: self.refine is Refinement.DSNOT,
            self.resolved_allocation: self.resolved_allocation in {Allocation.OWL, Allocation.CURVATURE},
            "reconstruction": self.reconstruct_epochs > 0,
        }
        return [str(name) for name, needs_text in users.items() if needs_text]

    @property
    def reads_calibration(self) -> bool:
        """True if pruning reads calibration text. With the schedule `gradual`, the repair reads its own text."""
        return bool(self.text_users) and not self.gradual

    @property
    def keeps_zeros(self) -> bool:
        """True if no weight is set to zero: the model is pruned already, and keeps its zeros."""
        return self.sparsity == 0 and not self.gradual

    @property
    def summary(self) -> str:
        """Method and pattern, for example `wanda with dsnot (2:4)`."""
        more = [str(each) for each in (self.refine, self.resolved_allocation) if each not in _DEFAULTS]
        more += ["reconstruction"] if self.reconstruct_epochs else []
        how = self.schedule if self.gradual else self.method
        return f"{' with '.join([str(how), *filter(None, [' and '.join(more)])])} ({self.pattern})"

    def _require_gradual_settings(self) -> None:
        """Raise ConfigError if a setting has no effect because no pruning method runs, or if no zero is set."""
        if not self.sparsity:
            way_out = "Raise it, or use the schedule one_shot, with which a pruned model keeps its zeros."
            raise ConfigError("sparsity", "must be above 0 with the schedule gradual", self.sparsity, way_out)
        for field, value, only in (
            ("method", self.method, DEFAULT_PRUNER),
            ("refine", self.refine, Refinement.NONE),
            ("reconstruct_epochs", self.reconstruct_epochs, 0),
        ):
            if value != only:
                way_out = f"Leave {field} out, or use the schedule one_shot."
                rule = "must be left out with the schedule gradual, because no pruning method runs"
                raise ConfigError(field, rule, value if isinstance(value, int) else str(value), way_out)
        if self.compare is Compare.MODEL and self.resolved_allocation is not Allocation.UNIFORM:
            rule = "must be uniform if compare is model, which distributes the zeros itself"
            raise ConfigError("allocation", rule, str(self.allocation), "Leave allocation or compare out.")
        if self.resolved_allocation is Allocation.CURVATURE:
            rule = "must not be curvature with the schedule gradual"
            way_out = "Leave allocation out, and set compare to model, which compares by curvature during training."
            raise ConfigError("allocation", rule, str(self.allocation), way_out)

    def _require_group_settings(self) -> None:
        implied = self.pattern.sparsity(None)
        if abs(self.sparsity - implied) > 1e-9:
            rule = f"must be {implied:.12g}, the sparsity of the pattern {self.pattern}"
            raise ConfigError("sparsity", rule, self.sparsity, "Leave out sparsity or the pattern.")
        for field, value, only in (
            ("compare", self.compare, Compare.AUTO),
            ("allocation", self.resolved_allocation, Allocation.UNIFORM),
            ("sparsity_of", self.sparsity_of, SparsityOf.TARGETS),
        ):
            if value is not only:
                way_out = f"Every group has the same number of zeros. Use {only}, or the pattern unstructured."
                raise ConfigError(field, f"must be {only} with the pattern {self.pattern}", str(value), way_out)
