"""Settings of pruning, repair and evaluation as frozen dataclasses that reject contradictions. Needs no torch.

The command line derives its options from these fields (`seft.options`). The `Doc` of a field is its help text.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer
from typing_extensions import Doc

from seft.errors import ConfigError


class PruneMethod(StrEnum):
    """Pruning method: how the importance of a weight is computed."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    RIA = "ria"
    SPARSEGPT = "sparsegpt"
    ALPS = "alps"
    ADMM = "admm"


class PruneSchedule(StrEnum):
    """When weights become zero: all before training, or more and more while the model trains."""

    ONE_SHOT = "one_shot"
    GRADUAL = "gradual"


class Compare(StrEnum):
    """The weights among which importance is compared: those of a row, of a linear, or of all linears of the model.

    `auto` is the choice of the method's paper. `model` is possible with the schedule `gradual` only.
    """

    AUTO = "auto"
    ROW = "row"
    LAYER = "layer"
    MODEL = "model"


class Allocation(StrEnum):
    """How the zeros are distributed over the linears that are pruned."""

    UNIFORM = "uniform"
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


class RepairMethod(StrEnum):
    """Repair method: which values are trained. A model that is only pruned has no RepairConfig."""

    SEFT = "seft"
    FIXED_MASK = "fixed_mask"
    MASKED_FULL = "masked_full"
    MASKED_LORA = "masked_lora"
    SPP = "spp"
    LORA_REPRUNE = "lora_reprune"

    @property
    def keeps_zeros(self) -> bool:
        """True if every zero of the pruned model stays zero during repair."""
        return self not in {RepairMethod.SEFT, RepairMethod.LORA_REPRUNE}


class Variant(StrEnum):
    """Rules of the method `seft`: those of this library, or those of the paper (Xiao et al., arXiv 2505.24037).

    docs/method.md compares them.
    """

    IMPROVED = "improved"
    PUBLISHED = "published"


class RateSchedule(StrEnum):
    """How the learning rate changes after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class DropDecay(StrEnum):
    """How the drop rate, the fraction that a topology event replaces, falls to 0 at the last step."""

    LINEAR = "linear"
    COSINE = "cosine"


DEFAULT_PRUNER = PruneMethod.ADMM
"""Pruning method of the library, the command line and the service if the user chooses none."""
MOST_SPARSE = 0.99
"""Largest allowed fraction of zeros in a linear."""
_DEFAULTS = (Refinement.NONE, Allocation.UNIFORM)


def _require_between(field: str, value: float, low: float, high: float, way_out: str) -> None:
    if not low <= value <= high:
        raise ConfigError(field, f"must be from {low} to {high}", value, way_out)


def _require_at_least(field: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(field, f"must be at least {low}", value, f"Use {low} or more.")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Sparsity pattern: at most `kept` nonzeros in every `of` consecutive inputs of a linear. 1 of 1 has no effect."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Return the pattern that `unstructured` or N:M, for example `2:4`, names.

        Raises ConfigError for any other text.
        """
        if text == "unstructured":
            return UNSTRUCTURED
        numbers = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text)
        if not numbers or not int(numbers[1]) < int(numbers[2]):
            raise ConfigError(
                "pattern",
                "must be unstructured, or N:M with 0 < N < M",
                text,
                "Use for example 2:4, which keeps 2 of every 4 weights.",
            )
        return cls(int(numbers[1]), int(numbers[2]))

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}" if self.grouped else "unstructured"

    @property
    def grouped(self) -> bool:
        """True for an N:M pattern, False for `unstructured`."""
        return self.of > 1

    def sparsity(self, requested: float | None) -> float:
        """Return the requested sparsity. For an N:M pattern and None, return the sparsity of the pattern.

        Raises ConfigError if `requested` is None and there is no N:M pattern.
        """
        if requested is not None:
            return requested
        if not self.grouped:
            raise ConfigError(
                "sparsity", "must be given if the pattern is not N:M", None, "Set it, for example to 0.6."
            )
        return 1 - self.kept / self.of


UNSTRUCTURED = Pattern(1, 1)
_PatternText = Annotated[
    Pattern,
    BeforeValidator(lambda value: Pattern.parse(value) if isinstance(value, str) else value),
    PlainSerializer(str),
]


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """Settings of pruning. With an N:M pattern, `sparsity` must be that of the pattern.

    Every linear layer in the decoder blocks is pruned, except routers. With the schedule `gradual`, no pruning method
    runs: the sparsity rises during the repair.
    """

    sparsity: Annotated[float, Doc("Fraction of weights set to zero. May be left out with an N:M pattern.")]
    method: Annotated[PruneMethod, Doc("Criterion that ranks the weights by importance.")] = DEFAULT_PRUNER
    pattern: Annotated[
        _PatternText, Doc("unstructured, or N:M, for example 2:4: at most N nonzeros in every M inputs.")
    ] = UNSTRUCTURED
    compare: Annotated[
        Compare, Doc("Rank weights within a row or a layer. auto does what the paper of the method does.")
    ] = Compare.AUTO
    refine: Annotated[Refinement, Doc("Improvement of the mask after the method chose it.")] = Refinement.NONE
    allocation: Annotated[Allocation, Doc("How the zeros are distributed over the blocks.")] = Allocation.UNIFORM
    sparsity_of: Annotated[
        SparsityOf, Doc("What sparsity is a fraction of: weights of the target linears, or all of the model.")
    ] = SparsityOf.TARGETS
    schedule: Annotated[
        PruneSchedule, Doc("one_shot prunes before training. gradual raises the sparsity while the model trains.")
    ] = PruneSchedule.ONE_SHOT
    rise: Annotated[float, Doc("Fraction of the training steps in which the sparsity rises, with gradual.")] = 0.7
    rise_interval: Annotated[int, Doc("Steps between two increases of the sparsity, with gradual.")] = 2
    samples: Annotated[int, Doc("Number of calibration windows.")] = 128
    tokens: Annotated[int, Doc("Tokens per calibration window.")] = 2048
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
        _require_between("sparsity", self.sparsity, 0.0, MOST_SPARSE, "0.6 sets 60 % of the weights to zero.")
        _require_at_least("samples", self.samples, 1)
        _require_at_least("tokens", self.tokens, 2)
        _require_between("damping", self.damping, 1e-6, 1.0, "0.01 is the published value.")
        _require_between("reconstruct_epochs", self.reconstruct_epochs, 0, 100, "0 turns it off; 5 is a high value.")
        _require_between("reconstruct_learning_rate", self.reconstruct_learning_rate, 1e-8, 1.0, "Try 2e-4.")
        _require_between("rise", self.rise, 0.0, 1.0, "0.7 keeps the last 30 % of the steps for repair.")
        _require_at_least("rise_interval", self.rise_interval, 1)
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

    @property
    def gradual(self) -> bool:
        """True if the sparsity rises while the model trains."""
        return self.schedule is PruneSchedule.GRADUAL

    @property
    def summary(self) -> str:
        """Method and pattern, for example `wanda with dsnot (2:4)`."""
        more = [str(each) for each in (self.refine, self.allocation) if each not in _DEFAULTS]
        more += ["reconstruction"] if self.reconstruct_epochs else []
        how = self.schedule if self.gradual else self.method
        return f"{' with '.join([str(how), *filter(None, [' and '.join(more)])])} ({self.pattern})"

    def _require_gradual_settings(self) -> None:
        """Raise ConfigError if a setting has no effect because no pruning method runs."""
        for field, value, only in (
            ("method", self.method, DEFAULT_PRUNER),
            ("refine", self.refine, Refinement.NONE),
            ("reconstruct_epochs", self.reconstruct_epochs, 0),
        ):
            if value != only:
                way_out = f"Leave {field} out, or use the schedule one_shot."
                rule = "must be left out with the schedule gradual, because no pruning method runs"
                raise ConfigError(field, rule, value if isinstance(value, int) else str(value), way_out)

    def _require_group_settings(self) -> None:
        implied = self.pattern.sparsity(None)
        if abs(self.sparsity - implied) > 1e-9:
            rule = f"must be {implied:g}, the sparsity of the pattern {self.pattern}"
            raise ConfigError("sparsity", rule, self.sparsity, "Leave out sparsity or the pattern.")
        for field, value, only in (
            ("compare", self.compare, Compare.AUTO),
            ("allocation", self.allocation, Allocation.UNIFORM),
            ("sparsity_of", self.sparsity_of, SparsityOf.TARGETS),
        ):
            if value is not only:
                way_out = f"Every group has the same number of zeros. Use {only}, or the pattern unstructured."
                raise ConfigError(field, f"must be {only} with the pattern {self.pattern}", str(value), way_out)


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """Settings of the training of a pruned model. It does not increase the number of nonzeros.

    The active set is the set of weights that are trained at a time. With the method `seft`, a topology event every
    `update_interval` steps drops some weights from the active set and adds others. The other methods have no such
    events.
    """

    steps: Annotated[int, Doc("Number of optimizer steps.")]
    method: Annotated[RepairMethod, Doc("What is trained.")] = RepairMethod.SEFT
    density: Annotated[
        float | Literal["all"],
        Doc("Trained values as a fraction of the target weights. all trains every nonzero in place, with seft only."),
    ] = 0.005
    learning_rate: Annotated[
        float | Literal["auto"], Doc("Peak learning rate. auto chooses it from method and density.")
    ] = "auto"
    schedule: Annotated[RateSchedule, Doc("Learning rate schedule after the warm-up.")] = RateSchedule.LINEAR
    warmup_steps: Annotated[int, Doc("Steps in which the learning rate rises to its peak.")] = 0
    update_interval: Annotated[int, Doc("Steps between two updates of the active set.")] = 60
    drop_rate: Annotated[float, Doc("Largest fraction of the active set that one update replaces.")] = 0.2
    drop_decay: Annotated[DropDecay, Doc("How the drop rate falls to zero at the last step.")] = DropDecay.LINEAR
    settle: Annotated[float, Doc("Fraction of the steps, at the end, without updates of the active set.")] = 0.25
    swap_tokens: Annotated[
        int, Doc("Tokens between two events that swap zeros and nonzeros, with density all. 0 is off.")
    ] = 0
    variant: Annotated[
        Variant, Doc("Rules of the method seft: improved is this library's, published is the paper's.")
    ] = Variant.IMPROVED
    batch_tokens: Annotated[int, Doc("Tokens per optimizer step.")] = 16384
    sequence_tokens: Annotated[int, Doc("Tokens per window. Divides batch_tokens.")] = 512
    micro_batch: Annotated[int, Doc("Number of windows on the device at a time.")] = 1
    weight_decay: Annotated[float, Doc("Decay of the trained values towards their initial values.")] = 0.0
    clip_norm: Annotated[
        float | None, Doc("Largest gradient norm of a step, over all trained values. No limit if not given.")
    ] = None
    norms_and_biases: Annotated[bool, Doc("Train the weights of norm layers and all biases too.")] = False
    distill_weight: Annotated[
        float, Doc("Weight of the predictions of the teacher in the loss, from 0 to 1. 0 is off.")
    ] = 0.0
    hidden_weight: Annotated[float, Doc("Weight of the hidden states of the teacher, added to the loss. 0 is off.")] = (
        0.0
    )
    evaluate_interval: Annotated[
        int, Doc("Steps between evaluations on held-out text. Training returns the best state. 0 is off.")
    ] = 0
    patience: Annotated[
        int, Doc("Stop after this many evaluations in a row without improvement. 0 never stops early.")
    ] = 0
    seed: Annotated[int, Doc("Random seed.")] = 0

    def __post_init__(self) -> None:
        _require_at_least("steps", self.steps, 1)
        if self.density == "all":
            self._require_all_settings()
        else:
            _require_between("density", self.density, 1e-6, 1.0, "0.005 trains one of 200 weights.")
        if self.learning_rate != "auto":
            _require_between("learning_rate", self.learning_rate, 1e-8, 1.0, 'Use a rate such as 3e-3, or "auto".')
        _require_at_least("warmup_steps", self.warmup_steps, 0)
        _require_at_least("update_interval", self.update_interval, 1)
        _require_at_least("swap_tokens", self.swap_tokens, 0)
        if self.swap_tokens and not self.trains_all:
            way_out = "Leave it out, or use density all. Otherwise update_interval sets when events run."
            raise ConfigError("swap_tokens", "must be 0 if density is a number", self.swap_tokens, way_out)
        _require_between("drop_rate", self.drop_rate, 0.0, 1.0, "0.2 replaces up to 20 % of the active set per update.")
        _require_between("settle", self.settle, 0.0, 1.0, "0.25 runs the last quarter of the steps without updates.")
        if self.variant is not Variant.IMPROVED and self.method is not RepairMethod.SEFT:
            way_out = "Only seft has a published variant. Use the method seft, or leave variant out."
            raise ConfigError("variant", f"must be improved for the method {self.method}", str(self.variant), way_out)
        _require_at_least("sequence_tokens", self.sequence_tokens, 2)
        _require_at_least("micro_batch", self.micro_batch, 1)
        if self.batch_tokens < self.sequence_tokens or self.batch_tokens % self.sequence_tokens:
            raise ConfigError(
                "batch_tokens",
                f"must be a multiple of sequence_tokens ({self.sequence_tokens})",
                self.batch_tokens,
                f"Try {max(1, round(self.batch_tokens / self.sequence_tokens)) * self.sequence_tokens}.",
            )
        _require_between("weight_decay", self.weight_decay, 0.0, 1.0, "0.0 turns it off.")
        if self.clip_norm is not None:
            _require_between("clip_norm", self.clip_norm, 1e-4, 1e4, "1.0 is usual. Leave it out for no limit.")
        _require_between("distill_weight", self.distill_weight, 0.0, 1.0, "0.0 turns it off.")
        _require_between("hidden_weight", self.hidden_weight, 0.0, 100.0, "0.0 turns it off.")
        _require_at_least("evaluate_interval", self.evaluate_interval, 0)
        _require_at_least("patience", self.patience, 0)
        if self.patience and not self.evaluate_interval:
            way_out = "Set evaluate_interval to a number of steps, or leave patience out."
            raise ConfigError("patience", "must be 0 if evaluate_interval is 0", self.patience, way_out)

    @property
    def trains_all(self) -> bool:
        """True if all nonzeros are trained in place (`density: all`)."""
        return self.density == "all"

    @property
    def trained_fraction(self) -> float:
        """Density as a number: 1.0 for `all`."""
        return 1.0 if self.density == "all" else self.density

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in a step."""
        return math.ceil(self.batch_tokens / self.sequence_tokens / self.micro_batch)

    @property
    def distills(self) -> bool:
        """True if training needs the dense model as a teacher."""
        return self.distill_weight > 0 or self.hidden_weight > 0

    def _require_all_settings(self) -> None:
        """Raise ConfigError if a setting contradicts the training of all nonzeros in place."""
        if self.variant is Variant.PUBLISHED:
            way_out = "Leave variant out, or give density a number."
            raise ConfigError("variant", "must be improved with density all", str(self.variant), way_out)
        if self.method is not RepairMethod.SEFT:
            way_out = "Use the method seft, or give density a number. masked_full trains all nonzeros with AdamW."
            raise ConfigError("density", f"must be a number with the method {self.method}", self.density, way_out)
        if self.weight_decay:
            way_out = "Leave weight_decay out, or give density a number."
            rule = "must be 0 with density all, which keeps no initial values to decay to"
            raise ConfigError("weight_decay", rule, self.weight_decay, way_out)
        if self.clip_norm is not None:
            way_out = "Leave clip_norm out, or give density a number."
            rule = "must be left out with density all, which limits the step of each linear layer instead"
            raise ConfigError("clip_norm", rule, self.clip_norm, way_out)


def require_repair_of(prune: PruneConfig, repair: RepairConfig | None) -> None:
    """Raise ConfigError if the sparsity rises during training and the repair cannot do that."""
    if not prune.gradual:
        return
    if repair is None or not repair.trains_all:
        way_out = "Use the method seft with density all, or the schedule one_shot."
        value = None if repair is None else repair.density
        raise ConfigError("density", "must be all with the schedule gradual", value, way_out)
    if prune.rise * repair.steps < 1:
        way_out = f"Use at least {math.ceil(1 / prune.rise) if prune.rise else 1} steps and a rise above 0."
        raise ConfigError("rise", f"must cover at least one of the {repair.steps} steps", prune.rise, way_out)


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Settings of perplexity: exp of the mean loss per predicted token, over the first windows of a text."""

    tokens: Annotated[int, Doc("Tokens per window.")] = 1024
    windows: Annotated[int, Doc("Number of windows, taken from the start of the text.")] = 20

    def __post_init__(self) -> None:
        _require_at_least("tokens", self.tokens, 2)
        _require_at_least("windows", self.windows, 1)
