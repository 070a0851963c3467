"""What can be chosen, as frozen values that refuse contradictions. Needs no torch."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from seft.errors import ConfigError


class PruneMethod(StrEnum):
    """How a weight's importance is judged."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    SPARSEGPT = "sparsegpt"


class CalibrationOrder(StrEnum):
    """Which windows of the calibration text are taken: the first ones, or seeded random ones."""

    SEQUENTIAL = "sequential"
    RANDOM = "random"


class RateSchedule(StrEnum):
    """How the learning rate goes on after the warm-up."""

    LINEAR = "linear"
    COSINE = "cosine"
    CONSTANT = "constant"


def _between(field: str, value: float, low: float, high: float, way_out: str) -> None:
    if not low <= value <= high:
        raise ConfigError(field, f"must be from {low} to {high}", value, way_out)


def _at_least(field: str, value: int, low: int) -> None:
    if value < low:
        raise ConfigError(field, f"must be at least {low}", value, f"Give {low} or more.")


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """One-shot pruning of every target linear.

    `sparsity` is the share of zeros asked for in each target linear. Calibration reads `samples` windows of `tokens`
    tokens. `damping` is SparseGPT's share of the mean Hessian diagonal added to it.
    """

    sparsity: float
    method: PruneMethod = PruneMethod.WANDA
    samples: int = 128
    tokens: int = 2048
    order: CalibrationOrder = CalibrationOrder.RANDOM
    damping: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        _between("sparsity", self.sparsity, 0.0, 0.99, "0.6 makes 60 % of the weights zero.")
        _at_least("samples", self.samples, 1)
        _at_least("tokens", self.tokens, 2)
        _between("damping", self.damping, 1e-6, 1.0, "0.01 is the published value.")


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """SEFT: sparse fine-tuning whose topology evolves (arXiv 2505.24037).

    `density` is the share of target weights trained. A step sees `batch_tokens` tokens in windows of
    `sequence_tokens`, `micro_batch` windows at a time. Every `update_interval` steps an event drops and grows
    `drop_rate` (decaying) of the active set; the last `settle` share of the steps has no event.
    """

    steps: int
    density: float = 0.005
    learning_rate: float | Literal["auto"] = "auto"
    schedule: RateSchedule = RateSchedule.LINEAR
    warmup_steps: int = 0
    update_interval: int = 60
    drop_rate: float = 0.2
    settle: float = 0.25
    batch_tokens: int = 16384
    sequence_tokens: int = 512
    micro_batch: int = 1
    weight_decay: float = 0.0
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


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """Perplexity over the first `windows` windows of `tokens` tokens: exp of the mean of the windows' mean losses."""

    tokens: int = 1024
    windows: int = 20

    def __post_init__(self) -> None:
        _at_least("tokens", self.tokens, 2)
        _at_least("windows", self.windows, 1)
