"""What can be chosen, as frozen values that refuse contradictions. Needs no torch."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, PlainSerializer

from seft.errors import ConfigError


class PruneMethod(StrEnum):
    """How the importance of a weight is scored."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    RIA = "ria"
    SPARSEGPT = "sparsegpt"
    ALPS = "alps"


class Compare(StrEnum):
    """Weights among which importance is compared: a row, or the whole layer. `auto` follows the method's paper."""

    AUTO = "auto"
    ROW = "row"
    LAYER = "layer"


class Allocation(StrEnum):
    """How the zeros are distributed over the target linears."""

    UNIFORM = "uniform"
    OWL = "owl"
    ALPHAPRUNING = "alphapruning"


class Refinement(StrEnum):
    """Improvement of the mask after the pruning method chose it."""

    NONE = "none"
    DSNOT = "dsnot"


class SparsityOf(StrEnum):
    """What `sparsity` is a fraction of: the weights of the target linears, or all parameters of the model."""

    TARGETS = "targets"
    MODEL = "model"


class CalibrationOrder(StrEnum):
    """Which windows of the calibration text are taken: the first ones, or seeded random ones."""

    SEQUENTIAL = "sequential"
    RANDOM = "random"


class RepairMethod(StrEnum):
    """What is trained to repair a pruned model. A model that is only pruned has no RepairConfig."""

    SEFT = "seft"
    FIXED_MASK = "fixed_mask"
    MASKED_FULL = "masked_full"
    MASKED_LORA = "masked_lora"
    SPP = "spp"
    LORA_REPRUNE = "lora_reprune"

    @property
    def keeps_zeros(self) -> bool:
        """Whether zeros stay where pruning put them."""
        return self not in {RepairMethod.SEFT, RepairMethod.LORA_REPRUNE}


class RateSchedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


class DropDecay(StrEnum):
    """How the drop rate decays to 0 at the last step."""

    LINEAR = "linear"
    COSINE = "cosine"


DEFAULT_PRUNER = PruneMethod.SPARSEGPT
"""Pruning method of the library, the command line and the service if none is given."""
_USUAL = (Refinement.NONE, Allocation.UNIFORM)
MOST_SPARSE = 0.99
"""The largest share of zeros of a linear: what is sparser is better left out."""


def _between(field: str, value: float, low: float, high: float, way_out: str) -> None:
    if not low <= value <= high:
        raise ConfigError(field, f"must be from {low} to {high}", value, way_out)


def _at_least(field: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(field, f"must be at least {low}", value, f"Give {low} or more.")


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most `kept` nonzeros in every `of` neighbours along the inputs of a linear; one of one is no restriction."""

    kept: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """`unstructured`, or N:M as in `2:4`; ConfigError for anything else."""
        if text == "unstructured":
            return UNSTRUCTURED
        numbers = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text)
        if not numbers or not int(numbers[1]) < int(numbers[2]):
            raise ConfigError(
                "pattern", "must be unstructured, or N:M with 0 < N < M", text, "2:4 keeps two of every four."
            )
        return cls(int(numbers[1]), int(numbers[2]))

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}" if self.grouped else "unstructured"

    @property
    def grouped(self) -> bool:
        """Whether it restricts anything."""
        return self.of > 1

    def sparsity(self, asked: float | None) -> float:
        """The share of zeros that is asked for: the pattern's own where it has one and nothing else is said."""
        if asked is not None:
            return asked
        if not self.grouped:
            raise ConfigError("sparsity", "must be given without an N:M pattern", asked, "0.6 is usual.")
        return 1 - self.kept / self.of


UNSTRUCTURED = Pattern(1, 1)
_PatternText = Annotated[
    Pattern,
    BeforeValidator(lambda value: Pattern.parse(value) if isinstance(value, str) else value),
    PlainSerializer(str),
]


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """One-shot pruning of every target linear.

    `sparsity` is the share of zeros asked for, of what `sparsity_of` says; with an N:M pattern it is the pattern's.
    Calibration reads `samples` windows of `tokens` tokens. `damping` is the share of the mean Hessian diagonal that
    SparseGPT and ALPS add to it. Reconstruction sees that text `reconstruct_epochs` times; 0 switches it off.
    """

    sparsity: float
    method: PruneMethod = DEFAULT_PRUNER
    pattern: _PatternText = UNSTRUCTURED
    compare: Compare = Compare.AUTO
    refine: Refinement = Refinement.NONE
    allocation: Allocation = Allocation.UNIFORM
    sparsity_of: SparsityOf = SparsityOf.TARGETS
    samples: int = 128
    tokens: int = 2048
    order: CalibrationOrder = CalibrationOrder.RANDOM
    damping: float = 0.01
    reconstruct_epochs: int = 0
    reconstruct_learning_rate: float = 2e-4
    seed: int = 0

    def __post_init__(self) -> None:
        _between("sparsity", self.sparsity, 0.0, MOST_SPARSE, "0.6 makes 60 % of the weights zero.")
        _at_least("samples", self.samples, 1)
        _at_least("tokens", self.tokens, 2)
        _between("damping", self.damping, 1e-6, 1.0, "0.01 is the published value.")
        _between("reconstruct_epochs", self.reconstruct_epochs, 0, 100, "0 switches it off, 5 are many.")
        _between("reconstruct_learning_rate", self.reconstruct_learning_rate, 1e-8, 1.0, "Try 2e-4.")
        if self.method is PruneMethod.SPARSEGPT and self.compare is not Compare.AUTO:
            way_out = "It chooses within 128 columns at a time: leave compare out, or take another method."
            raise ConfigError("compare", "must be auto for sparsegpt", str(self.compare), way_out)
        if self.pattern.grouped:
            self._must_suit_groups()

    @property
    def summary(self) -> str:
        """Method and pattern in a few words."""
        more = [str(each) for each in (self.refine, self.allocation) if each not in _USUAL]
        more += ["reconstruction"] if self.reconstruct_epochs else []
        return f"{' with '.join([str(self.method), *filter(None, [' and '.join(more)])])} ({self.pattern})"

    def _must_suit_groups(self) -> None:
        share = self.pattern.sparsity(None)
        if abs(self.sparsity - share) > 1e-9:
            rule = f"must be {share:g}, which follows from the pattern {self.pattern}"
            raise ConfigError("sparsity", rule, self.sparsity, "Leave it out, or leave the pattern out.")
        for field, value, only in (
            ("compare", self.compare, Compare.AUTO),
            ("allocation", self.allocation, Allocation.UNIFORM),
            ("sparsity_of", self.sparsity_of, SparsityOf.TARGETS),
        ):
            if value is not only:
                way_out = f"Every group has as many zeros as the next: take {only}, or pattern unstructured."
                raise ConfigError(field, f"must be {only} with the pattern {self.pattern}", str(value), way_out)


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """Training of a pruned model that keeps its budget of nonzeros.

    `density` says how many values are trained, as a share of the target weights; masked_full trains all nonzeros. A
    step sees `batch_tokens` tokens in windows of `sequence_tokens`, `micro_batch` windows at a time. For seft alone:
    every `update_interval` steps an event drops and grows `drop_rate` of the active set, which falls as `drop_decay`
    says; the last `settle` share of the steps has no event. `clip_norm` is the largest norm of a step's gradient over
    all trained values; None sets no limit. `distill_weight` is the share of the dense model's predictions in what is
    learnt, `hidden_weight` the weight of its hidden states beside that; 0 switches them off. Every `evaluate_interval`
    steps, 0 for never, the model is judged on held-out text, and the best state found is what training leaves; it ends
    early after `patience` evaluations in a row that found no better one, 0 for never.
    """

    steps: int
    method: RepairMethod = RepairMethod.SEFT
    density: float = 0.005
    learning_rate: float | Literal["auto"] = "auto"
    schedule: RateSchedule = RateSchedule.LINEAR
    warmup_steps: int = 0
    update_interval: int = 60
    drop_rate: float = 0.2
    drop_decay: DropDecay = DropDecay.LINEAR
    settle: float = 0.25
    batch_tokens: int = 16384
    sequence_tokens: int = 512
    micro_batch: int = 1
    weight_decay: float = 0.0
    clip_norm: float | None = None
    distill_weight: float = 0.0
    hidden_weight: float = 0.0
    evaluate_interval: int = 0
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("steps", self.steps, 1)
        _between("density", self.density, 1e-6, 1.0, "0.005 trains one weight of 200.")
        if self.learning_rate != "auto":
            _between("learning_rate", self.learning_rate, 1e-8, 1.0, 'Give a rate such as 3e-3, or "auto".')
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("update_interval", self.update_interval, 1)
        _between("drop_rate", self.drop_rate, 0.0, 1.0, "0.2 replaces up to a fifth of the active set at an event.")
        _between("settle", self.settle, 0.0, 1.0, "0.25 leaves the last quarter of training without events.")
        _at_least("sequence_tokens", self.sequence_tokens, 2)
        _at_least("micro_batch", self.micro_batch, 1)
        if self.batch_tokens < self.sequence_tokens or self.batch_tokens % self.sequence_tokens:
            raise ConfigError(
                "batch_tokens",
                f"must be a multiple of sequence_tokens ({self.sequence_tokens})",
                self.batch_tokens,
                f"Try {max(1, round(self.batch_tokens / self.sequence_tokens)) * self.sequence_tokens}.",
            )
        _between("weight_decay", self.weight_decay, 0.0, 1.0, "0.0 switches it off.")
        if self.clip_norm is not None:
            _between("clip_norm", self.clip_norm, 1e-4, 1e4, "1.0 is usual; leave it out to set no limit.")
        _between("distill_weight", self.distill_weight, 0.0, 1.0, "0.0 switches it off.")
        _between("hidden_weight", self.hidden_weight, 0.0, 100.0, "0.0 switches it off.")
        _at_least("evaluate_interval", self.evaluate_interval, 0)
        _at_least("patience", self.patience, 0)
        if self.patience and not self.evaluate_interval:
            way_out = "Set evaluate_interval to a number of steps, or leave patience out."
            raise ConfigError("patience", "must be 0 without evaluations", self.patience, way_out)

    @property
    def distills(self) -> bool:
        """Whether a dense model is needed to learn from."""
        return self.distill_weight > 0 or self.hidden_weight > 0


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Perplexity over the first `windows` windows of `tokens` tokens: exp of the mean loss of what is predicted."""

    tokens: int = 1024
    windows: int = 20

    def __post_init__(self) -> None:
        _at_least("tokens", self.tokens, 2)
        _at_least("windows", self.windows, 1)
