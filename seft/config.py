"""Settings of pruning, repair and evaluation as frozen dataclasses that reject contradictions. Needs no torch.

The command line derives its options from these fields (`seft.options`). The `Doc` of a field is its help text.
"""

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


class Compare(StrEnum):
    """The weights among which importance is compared: those of a row, or those of the whole linear.

    `auto` is the choice of the method's paper.
    """

    AUTO = "auto"
    ROW = "row"
    LAYER = "layer"


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
    """Settings of one-shot pruning. With an N:M pattern, `sparsity` must be that of the pattern.

    Every linear layer in the decoder blocks is pruned, except routers.
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
        if self.method is PruneMethod.SPARSEGPT and self.compare is not Compare.AUTO:
            way_out = "sparsegpt compares within 128 columns at a time. Leave compare out, or use another method."
            raise ConfigError("compare", "must be auto for sparsegpt", str(self.compare), way_out)
        if self.pattern.grouped:
            self._require_group_settings()

    @property
    def summary(self) -> str:
        """Method and pattern, for example `wanda with dsnot (2:4)`."""
        more = [str(each) for each in (self.refine, self.allocation) if each not in _DEFAULTS]
        more += ["reconstruction"] if self.reconstruct_epochs else []
        return f"{' with '.join([str(self.method), *filter(None, [' and '.join(more)])])} ({self.pattern})"

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
        float, Doc("Trained values as a fraction of the target weights. masked_full trains all nonzeros.")
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
    batch_tokens: Annotated[int, Doc("Tokens per optimizer step.")] = 16384
    sequence_tokens: Annotated[int, Doc("Tokens per window. Divides batch_tokens.")] = 512
    micro_batch: Annotated[int, Doc("Number of windows on the device at a time.")] = 1
    weight_decay: Annotated[float, Doc("Decay of the trained values towards their initial values.")] = 0.0
    clip_norm: Annotated[
        float | None, Doc("Largest gradient norm of a step, over all trained values. No limit if not given.")
    ] = None
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
        _require_between("density", self.density, 1e-6, 1.0, "0.005 trains one of 200 weights.")
        if self.learning_rate != "auto":
            _require_between("learning_rate", self.learning_rate, 1e-8, 1.0, 'Use a rate such as 3e-3, or "auto".')
        _require_at_least("warmup_steps", self.warmup_steps, 0)
        _require_at_least("update_interval", self.update_interval, 1)
        _require_between("drop_rate", self.drop_rate, 0.0, 1.0, "0.2 replaces up to 20 % of the active set per update.")
        _require_between("settle", self.settle, 0.0, 1.0, "0.25 runs the last quarter of the steps without updates.")
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
    def distills(self) -> bool:
        """True if training needs the dense model as a teacher."""
        return self.distill_weight > 0 or self.hidden_weight > 0


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Settings of perplexity: exp of the mean loss per predicted token, over the first windows of a text."""

    tokens: Annotated[int, Doc("Tokens per window.")] = 1024
    windows: Annotated[int, Doc("Number of windows, taken from the start of the text.")] = 20

    def __post_init__(self) -> None:
        _require_at_least("tokens", self.tokens, 2)
        _require_at_least("windows", self.windows, 1)
