"""Settings of the training that repairs a pruned model."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import Doc

from seft.config.checks import ROUNDING, require_at_least, require_between
from seft.config.methods import (
    DEFAULT_DENSITY,
    DropDecay,
    RateSchedule,
    RepairMethod,
    Retain,
    Variant,
    trains_all,
)
from seft.config.prune import PruneConfig
from seft.config.rates import RATED_WIDTH, auto_rate
from seft.errors import ConfigError

DEFAULT_TRAINING_TOKENS = 1 << 23
"""Number of tokens that training reads if the number of steps is not given."""


def default_batch(sequence_tokens: int) -> int:
    """Return the number of tokens of two sequences, which are a step by default."""
    return 2 * sequence_tokens


def default_steps(batch_tokens: int) -> int:
    """Return the number of steps that read about 8 million tokens, from 1 to 1,000,000."""
    return min(max(1, DEFAULT_TRAINING_TOKENS // max(1, batch_tokens)), 1_000_000)


WRITTEN_AT_ONCE = 1 << 13
"""Number of tokens that the dense model writes at a time, in several windows. It limits the key-value cache."""

READ_ONCE, READS = 1 << 16, 4
"""Training reads written text of up to `READ_ONCE` tokens only once, and longer written text at most `READS` times."""


@dataclass(frozen=True, slots=True)
class RepairConfig:
    """Settings of the training of a pruned model. It does not increase the number of nonzeros.

    The active set is the set of weights that are trained at a time. With the method `seft`, a topology event every
    `update_interval` steps drops some weights from the active set and adds others. The other methods have no such
    events.
    """

    steps: Annotated[int, Doc("Number of optimizer steps. By default, the training reads 8,388,608 tokens.")]
    method: Annotated[RepairMethod, Doc("What is trained.")] = RepairMethod.SEFT
    density: Annotated[
        float | Literal["auto", "all"],
        Doc(
            "Trained values as a fraction of the target weights. all trains every nonzero in place, with seft only."
            " auto is all for the method seft with the variant improved, and 0.005 in all other cases."
        ),
    ] = "auto"
    learning_rate: Annotated[
        float | Literal["auto"],
        Doc(
            "Peak learning rate. auto chooses it from the method, the density, the width of the model and, with density"
            " all, the number of steps."
        ),
    ] = "auto"
    schedule: Annotated[RateSchedule, Doc("Learning rate schedule after the warm-up.")] = RateSchedule.LINEAR
    warmup_steps: Annotated[int, Doc("Steps in which the learning rate rises to its peak.")] = 0
    update_interval: Annotated[int, Doc("Steps between two updates of the active set.")] = 60
    drop_rate: Annotated[
        float, Doc("Fraction of the active set that an update replaces. The first update replaces all of it.")
    ] = 0.2
    drop_decay: Annotated[DropDecay, Doc("How the drop rate falls to zero at the last step.")] = DropDecay.LINEAR
    settle: Annotated[
        float, Doc("Fraction of the steps, at the end, without updates of the active set and without swaps.")
    ] = 0.25
    swap_tokens: Annotated[
        int, Doc("Tokens between two events that swap zeros and nonzeros, with density all. 0 is off.")
    ] = 0
    variant: Annotated[
        Variant, Doc("Rules of the method seft: improved is this library's, published is the paper's.")
    ] = Variant.IMPROVED
    batch_tokens: Annotated[int, Doc("Tokens per optimizer step. If not given, two sequences.")] = 1024
    sequence_tokens: Annotated[
        int,
        Doc(
            "Tokens per window. Divides batch_tokens. If not given, 512, or the context length of the model if that is"
            " less."
        ),
    ] = 512
    micro_batch: Annotated[int, Doc("Number of windows on the device at a time.")] = 2
    activation_checkpointing: Annotated[
        bool,
        Doc(
            "Compute the activations of a block again in the backward pass. Less memory, 1.3 times the time, same bits."
        ),
    ] = False
    weight_decay: Annotated[float, Doc("Decay of the trained weights towards their values before training.")] = 0.0
    clip_norm: Annotated[
        float | None, Doc("Gradient clipping: largest norm, over all trained values. No limit if not given.")
    ] = None
    norms_and_biases: Annotated[bool, Doc("Train the weights of norm layers and all biases too.")] = False
    distill_weight: Annotated[
        float, Doc("Weight of the predictions of the teacher in the loss, from 0 to 1. 0 is off.")
    ] = 0.0
    hidden_weight: Annotated[float, Doc("Weight of the hidden states of the teacher, added to the loss. 0 is off.")] = (
        0.0
    )
    retain: Annotated[
        Retain,
        Doc("Text on which the model keeps the predictions of the dense model: none, written (by it) or dataset."),
    ] = Retain.NONE
    retain_share: Annotated[float, Doc("Fraction of each batch that is retained text, unless retain is none.")] = 0.5
    retain_tokens: Annotated[
        int, Doc("Largest number of tokens of retained text. If training reads more, it reads the text again.")
    ] = 1 << 18
    evaluate_interval: Annotated[
        int, Doc("Steps between evaluations on held-out text. Training returns the best state. 0 is off.")
    ] = 0
    patience: Annotated[
        int, Doc("Stop after this many evaluations in a row without improvement. 0 never stops early.")
    ] = 0
    seed: Annotated[int, Doc("Random seed.")] = 0

    def __post_init__(self) -> None:
        require_at_least("steps", self.steps, 1)
        if self.trains_all:
            self._require_all_settings()
        elif isinstance(self.density, float | int):
            require_between("density", self.density, 1e-6, 1.0, "0.005 trains one of 200 weights.")
        if self.learning_rate != "auto":
            require_between("learning_rate", self.learning_rate, 1e-8, 1.0, 'Use a rate such as 3e-3, or "auto".')
        require_between("warmup_steps", self.warmup_steps, 0, self.steps - 1, "The rate must reach its peak.")
        require_at_least("update_interval", self.update_interval, 1)
        require_at_least("swap_tokens", self.swap_tokens, 0)
        if self.swap_tokens and not self.trains_all:
            way_out = "Leave it out, or use density all. Otherwise update_interval sets when events run."
            raise ConfigError("swap_tokens", "must be 0 if density is a number", self.swap_tokens, way_out)
        require_between("drop_rate", self.drop_rate, 0.0, 1.0, "0.2 replaces up to 20 % of the active set per update.")
        require_between("settle", self.settle, 0.0, 1.0, "0.25 runs the last quarter of the steps without updates.")
        if self.variant is not Variant.IMPROVED and self.method is not RepairMethod.SEFT:
            way_out = "Only seft has a published variant. Use the method seft, or leave variant out."
            raise ConfigError("variant", f"must be improved for the method {self.method}", str(self.variant), way_out)
        self._require_batch()
        require_between("weight_decay", self.weight_decay, 0.0, 1.0, "0.0 turns it off.")
        if self.clip_norm is not None:
            require_between("clip_norm", self.clip_norm, 1e-4, 1e4, "1.0 is usual. Leave it out for no limit.")
        require_between("distill_weight", self.distill_weight, 0.0, 1.0, "0.0 turns it off.")
        require_between("hidden_weight", self.hidden_weight, 0.0, 100.0, "0.0 turns it off.")
        require_between("retain_share", self.retain_share, 0.01, 0.9, "0.5 takes half of each batch.")
        require_between("retain_tokens", self.retain_tokens, 2, 1 << 22, "262144 is the default.")
        if self.retains:
            self._require_retained_text()
        require_at_least("evaluate_interval", self.evaluate_interval, 0)
        require_at_least("patience", self.patience, 0)
        if self.patience and not self.evaluate_interval:
            way_out = "Set evaluate_interval to a number of steps, or leave patience out."
            raise ConfigError("patience", "must be 0 if evaluate_interval is 0", self.patience, way_out)

    @property
    def last_event(self) -> int:
        """Last step after which active positions are replaced, or zeros and nonzeros are swapped."""
        return math.floor(self.steps * (1 - self.settle) + ROUNDING)

    def require_swap_after(self, first: int) -> None:
        """Raise ConfigError if swaps are configured and none would run after step `first`."""
        if self.swap_tokens and first + math.ceil(self.swap_tokens / self.batch_tokens) > self.last_event:
            rule = f"must be small enough for a swap after step {first} and not later than step {self.last_event}"
            way_out = "Lower it, or set settle or rise to a lower value, or take more steps."
            raise ConfigError("swap_tokens", rule, self.swap_tokens, way_out)

    def require_processes(self, count: int) -> None:
        """Raise ConfigError if `count` processes cannot get equal parts of each micro-batch, or cannot swap as set.

        Several processes cannot swap, because each collects candidates in its own backward pass.
        """
        if self.swap_tokens and count > 1:
            way_out = "Leave it out, or use one device."
            raise ConfigError("swap_tokens", f"must be 0 on several devices, here {count}", self.swap_tokens, way_out)
        for field, windows in (("batch_tokens", self.windows), ("micro_batch", self.micro_batch)):
            if windows % count:
                whole = math.ceil(max(self.windows, self.micro_batch) / count) * count
                raise ConfigError(
                    field,
                    f"must give a number of sequences that is a multiple of the number of devices, {count}",
                    windows,
                    "Every device trains on the same number of sequences. Use for example batch_tokens"
                    f" {whole * self.sequence_tokens} and micro_batch {whole}.",
                    lead="it gives",
                )

    @property
    def trains_all(self) -> bool:
        """True if all nonzeros are trained in place (`density: all`)."""
        return trains_all(self.density, self.method, self.variant)

    @property
    def trained_fraction(self) -> float:
        """Density as a number: 1.0 if all nonzeros are trained."""
        if self.trains_all or self.method is RepairMethod.MASKED_FULL:
            return 1.0
        return DEFAULT_DENSITY if isinstance(self.density, str) else self.density

    def peak_rate(self, width: int = RATED_WIDTH) -> float:
        """Return the configured peak rate, or for "auto" that of `auto_rate` for a model with this hidden size."""
        if self.learning_rate != "auto":
            return self.learning_rate
        density = None if self.trains_all else self.trained_fraction
        return auto_rate(self.method, self.variant, width, density=density, steps=self.steps)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches in a step."""
        return math.ceil(self.batch_tokens / self.sequence_tokens / self.micro_batch)

    @property
    def retains(self) -> bool:
        """True if a part of each batch is text on which the model keeps the predictions of the dense model."""
        return self.retain is not Retain.NONE

    def retained_before(self, step: int) -> int:
        """Return the number of windows of retained text in all steps before a step. The first step is 1."""
        return int((step - 1) * self.windows * self.retain_share + ROUNDING) if self.retains else 0

    @property
    def retained_windows(self) -> int:
        """Number of windows of retained text. An eighth of them, at least one, is not trained on but only measured on.

        It is the smallest number with which the training reads no window twice. But writing takes as long as training
        on the same tokens. So if the model writes the text, then from `READ_ONCE` tokens on it is the smallest number
        with which each window is read at most `READS` times. `retain_tokens` limits both.
        """
        read = self.retained_before(self.steps + 1)
        once = read + max(1, (read - 1) // 7)
        few = max(READ_ONCE // self.sequence_tokens, math.ceil(once / READS))
        wanted = few if self.retain is Retain.WRITTEN else once
        return max(2, min(self.retain_tokens // self.sequence_tokens, once, wanted))

    @property
    def written_at_once(self) -> int:
        """Number of windows of retained text that the dense model writes at the same time."""
        return min(max(1, WRITTEN_AT_ONCE // self.sequence_tokens), self.retained_windows)

    @property
    def windows(self) -> int:
        """Number of windows in a step."""
        return self.batch_tokens // self.sequence_tokens

    @property
    def distills(self) -> bool:
        """True if training needs the dense model as a teacher."""
        return self.distill_weight > 0 or self.hidden_weight > 0

    def _require_batch(self) -> None:
        """Raise ConfigError if a step has no whole number of windows."""
        require_at_least("sequence_tokens", self.sequence_tokens, 2)
        require_at_least("micro_batch", self.micro_batch, 1)
        if self.batch_tokens < self.sequence_tokens or self.batch_tokens % self.sequence_tokens:
            raise ConfigError(
                "batch_tokens",
                f"must be a multiple of sequence_tokens ({self.sequence_tokens})",
                self.batch_tokens,
                f"Try {max(1, round(self.batch_tokens / self.sequence_tokens)) * self.sequence_tokens}.",
            )

    def _require_retained_text(self) -> None:
        """Raise ConfigError if no window of retained text can be trained on."""
        if self.retain_tokens < 2 * self.sequence_tokens:
            rule = f"must be at least twice sequence_tokens ({self.sequence_tokens}), the length of one sequence"
            way_out = f"Try {min(128 * self.sequence_tokens, 1 << 22)}."
            raise ConfigError("retain_tokens", rule, self.retain_tokens, way_out)
        if not self.retained_before(self.steps + 1):
            rule = f"must give at least one window of retained text in {self.steps} steps of {self.windows} windows"
            raise ConfigError("retain_share", rule, self.retain_share, "Raise it, or set retain to none.")

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
    """Raise ConfigError if the repair cannot raise the sparsity as `prune` asks, or if configured swaps never run."""
    if not prune.gradual:
        if repair:
            repair.require_swap_after(0)
        return
    if repair is None or not repair.trains_all:
        way_out = "Use the method seft with density all, or the schedule one_shot."
        value = None if repair is None else repair.density
        raise ConfigError("density", "must be all with the schedule gradual", value, way_out)
    if prune.rise * repair.steps < 1:
        way_out = f"Use a rise of at least {math.ceil(1000 / repair.steps) / 1000}, or more steps."
        raise ConfigError("rise", f"must cover at least one of the {repair.steps} steps", prune.rise, way_out)
    repair.require_swap_after(prune.rise_end(repair.steps))
