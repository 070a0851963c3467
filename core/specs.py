"""The request of a job. The API and the column `spec` of the job's row use the same model.

Only `model`, `dataset` and `sparsity` are required. Unknown fields are rejected. The allowed words are the enums of the
library. The allowed ranges are the same as in `seft.config`; a test checks that they agree. Rules about several fields
are those of the library: a valid request can be converted to the library's settings.
"""

import hashlib
import json
import re
from dataclasses import fields
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from core import ids
from core.request_fields import Boolean, Integer, Number, Spec, StorableText
from seft import config
from seft.config import (
    DEFAULT_PRUNER,
    Allocation,
    Compare,
    DropDecay,
    PruneMethod,
    PruneSchedule,
    Refinement,
    SparsityOf,
    Variant,
)
from seft.errors import ConfigError

SPEC_VERSION = 7
"""Version of the fields of a request. Raise it with every change, so that older workers do not claim new requests."""


MAX_SECONDS = 366 * 24 * 3600


class CalibrationSpec(Spec):
    """The calibration text: pruning measures on it how important each weight is."""

    samples: Integer = Field(default=128, ge=1, le=4096, description="Number of sequences of calibration text.")
    tokens: Integer = Field(default=2048, ge=2, le=131072, description="Tokens per sequence of calibration text.")


class PruneSpec(Spec):
    """How the model is pruned."""

    method: PruneMethod = Field(
        default=DEFAULT_PRUNER,
        description="How the importance of a weight is scored. The least important weights become zero.",
    )
    compare: Compare = Field(
        default=Compare.AUTO,
        description="Compare the weights of one `row`, of one `layer`, or, with the schedule `gradual`, of the whole"
        " `model`. `auto` follows the paper of the method.",
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


class RepairMethod(StrEnum):
    """What is trained to repair the pruned model. With `none`, the job only prunes."""

    # An enum cannot be extended, so the members of the library's are repeated here, with its values.
    SEFT = config.RepairMethod.SEFT
    FIXED_MASK = config.RepairMethod.FIXED_MASK
    MASKED_FULL = config.RepairMethod.MASKED_FULL
    MASKED_LORA = config.RepairMethod.MASKED_LORA
    SPP = config.RepairMethod.SPP
    LORA_REPRUNE = config.RepairMethod.LORA_REPRUNE
    NONE = "none"


class RepairSpec(Spec):
    """How the pruned model is repaired."""

    method: RepairMethod = Field(
        default=RepairMethod.SEFT,
        description="What is trained; `none` only prunes. Only `seft` and `lora_reprune` can move the zeros.",
    )
    density: Annotated[Number, Field(ge=1e-6, le=1.0)] | Literal["all"] = Field(
        default=0.005,
        description="Number of trained values, as a fraction of the weights in the pruned layers. `all` trains all"
        " nonzeros, with `seft` only.",
    )
    steps: Integer = Field(default=500, ge=1, le=1_000_000, description="Number of optimizer steps.")
    learning_rate: Annotated[Number, Field(ge=1e-8, le=1.0)] | Literal["auto"] = Field(
        default="auto", description="Peak learning rate. `auto` chooses it from the method and the density."
    )
    update_interval: Integer = Field(
        default=60,
        ge=1,
        le=1_000_000,
        description="Steps between two topology updates, which exchange some trained weights for others.",
    )
    drop_rate: Number = Field(
        default=0.2,
        ge=0.0,
        le=1.0,
        description="Fraction of the trained weights that the first topology update exchanges.",
    )
    drop_decay: DropDecay = Field(
        default=DropDecay.LINEAR, description="How `drop_rate` decreases to 0 at the last step."
    )
    variant: Variant = Field(
        default=Variant.IMPROVED,
        description="Rules of `seft`: `improved` are those of this software, `published` those of the paper.",
    )
    swap_tokens: Integer = Field(
        default=0,
        ge=0,
        le=1 << 40,
        description="Tokens between two events that swap zeros and nonzeros, with the density `all`. 0 is off.",
    )
    batch_tokens: Integer = Field(default=16384, ge=2, le=1 << 24, description="Tokens per optimizer step.")
    sequence_tokens: Integer = Field(
        default=512, ge=2, le=131072, description="Tokens per training sequence. Must divide `batch_tokens`."
    )
    micro_batch: Integer = Field(
        default=1,
        ge=1,
        le=4096,
        description="Number of sequences on the device at a time. Changes memory and speed, not the result.",
    )
    clip_norm: Annotated[Number, Field(ge=1e-4, le=1e4)] | None = Field(
        default=None,
        description="Maximum norm of the gradient. A larger gradient is scaled down. `null` sets no limit.",
    )
    norms_and_biases: Boolean = Field(
        default=False, description="Also train the weights of norm layers and all biases, with every method."
    )
    distill_weight: Number = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Fraction of the loss that compares predictions with those of the dense model; 0 is off.",
    )
    hidden_weight: Number = Field(
        default=0.0,
        ge=0.0,
        le=100.0,
        description="Weight in the loss of the difference to the dense model's hidden states; 0 is off.",
    )
    retain: Literal[config.Retain.NONE, config.Retain.WRITTEN] = Field(
        default=config.Retain.NONE,
        description="Text on which the model keeps what the dense model predicts: `written` by the dense model.",
    )
    retain_share: Number = Field(default=0.5, ge=0.01, le=0.9, description="Fraction of retained text in each batch.")
    retain_tokens: Integer = Field(
        default=65536, ge=2, le=1 << 22, description="Largest number of tokens of retained text."
    )
    evaluate_interval: Integer = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Steps between two evaluations on the held-out text. The best state is published. 0 is off.",
    )
    patience: Integer = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Training ends after this many evaluations in a row without an improvement; 0 is off.",
    )

    @property
    def retains(self) -> bool:
        """True if a part of each batch is text on which the model keeps the predictions of the dense model."""
        return self.method is not RepairMethod.NONE and self.retain is not config.Retain.NONE


class EvaluateSpec(Spec):
    """How the dense, the pruned and the repaired model are evaluated."""

    held_out: Number = Field(
        default=0.1,
        gt=0.0,
        lt=1.0,
        description="Fraction of the dataset's records that is held out from training and used for evaluation.",
    )
    tasks: tuple[Literal["perplexity"], ...] = Field(
        default=("perplexity",), min_length=1, max_length=1, description="Metrics to measure."
    )
    windows: Integer = Field(
        default=20,
        ge=1,
        le=4096,
        description="Number of held-out sequences to evaluate on. If there are fewer, all are used.",
    )
    tokens: Integer = Field(default=1024, ge=2, le=131072, description="Tokens per held-out sequence.")


class OutputSpec(Spec):
    """Format of the checkpoint, and how long it is kept."""

    format: Literal["dense"] = Field(
        default="dense", description="`dense` is a Hugging Face folder in which pruned weights are exactly 0."
    )
    retention_days: Integer = Field(
        default=30, ge=0, le=36500, description="Days after which the checkpoint is deleted; 0 keeps it permanently."
    )


def _describe_job(schema: dict[str, Any]) -> None:
    schema["required"].remove("sparsity")
    schema["example"] = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "dataset": "file_01jz5h4c8m2v9q7w3t6x0y1b2d",
        "sparsity": 0.6,
    }


def _pattern_sparsity(pattern: object) -> float | None:
    """Return the fraction of zeros in an N:M pattern. Returns None if `pattern` is not such a pattern."""
    match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", pattern) if isinstance(pattern, str) else None
    return 1 - int(match[1]) / int(match[2]) if match else None


class JobSpec(Spec):
    """A repair job: make `model` sparse, then repair it on `dataset`."""

    model_config = ConfigDict(json_schema_extra=_describe_job)

    model: StorableText = Field(
        min_length=1,
        max_length=512,
        description="Id of a hub model, path of a model in a folder that the operator made available, or id of a job"
        " whose result to use.",
    )
    revision: StorableText | None = Field(
        default=None, max_length=128, description="Branch, tag or commit of a hub model."
    )
    dataset: str = Field(pattern=ids.pattern("file"), description="Id of an uploaded dataset.")
    sparsity: Number = Field(
        ge=0.0,
        le=0.99,
        description="Fraction of weights to set to zero. Optional with an N:M `pattern`, which implies it.",
    )
    pattern: str = Field(
        default="unstructured",
        pattern=r"^(unstructured|[1-9]\d{0,3}:[1-9]\d{0,3})$",
        description="Where zeros may be: anywhere (`unstructured`), or N:M, N nonzeros in every M inputs, as in `2:4`.",
    )
    sparsity_of: SparsityOf = Field(
        default=SparsityOf.TARGETS,
        description="What `sparsity` is a fraction of: the weights of the pruned layers, or all parameters (`model`).",
    )
    allocation: Allocation = Field(
        default=Allocation.UNIFORM,
        description="`uniform`: all pruned layers are equally sparse. Otherwise blocks differ, with the same total.",
    )
    prune: PruneSpec = Field(default_factory=PruneSpec, description="How the model is pruned.")
    repair: RepairSpec = Field(default_factory=RepairSpec, description="How the pruned model is repaired.")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="How the models are evaluated.")
    output: OutputSpec = Field(default_factory=OutputSpec, description="Format and lifetime of the checkpoint.")
    auto_start: Boolean = Field(default=True, description="If `false`, the job waits for `POST /jobs/{job_id}/start`.")
    priority: Integer = Field(default=0, ge=-100, le=100, description="Orders your tenant's jobs, highest first.")
    seed: Integer = Field(default=0, ge=0, lt=2**63, description="Seed of the random numbers of the job.")
    max_seconds: Integer = Field(
        default=0,
        ge=0,
        le=MAX_SECONDS,
        description="Maximum run time of all attempts together; a job that needs longer fails. 0: only the operator's"
        " limit applies.",
    )
    suffix: StorableText | None = Field(
        default=None, max_length=64, description="Name that the pages show for the job and its result."
    )
    metadata: dict[Annotated[StorableText, Field(max_length=64)], Annotated[StorableText, Field(max_length=512)]] = (
        Field(
            default_factory=dict,
            max_length=16,
            description="Up to 16 name-value pairs of your choice, stored with the job.",
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_sparsity(cls, data: Any) -> Any:
        if isinstance(data, dict) and "sparsity" not in data:
            implied = _pattern_sparsity(data.get("pattern"))
            return data if implied is None else {**data, "sparsity": implied}
        return data

    @field_validator("pattern")
    @classmethod
    def _require_matching_sparsity(cls, value: str, info: ValidationInfo) -> str:
        implied = _pattern_sparsity(value)
        if implied is not None and not 0 < implied < 1:
            raise ValueError("must be N:M with N smaller than M")
        sparsity = info.data.get("sparsity")
        if implied is not None and sparsity is not None and abs(sparsity - implied) > 1e-9:
            raise ValueError(f"must agree with sparsity ({sparsity}); {value} implies {implied:g}")
        return value

    @model_validator(mode="after")
    def _require_settings_of_library(self) -> Self:
        """Reject values that contradict each other. The rules are those of the library."""
        try:
            prune, repair = self.prune_config(), self.repair_config()
            if prune.gradual and repair is None:
                way_out = "Use the method seft with density all, or the schedule one_shot."
                raise ConfigError("repair.method", "must be seft with the schedule gradual", "none", way_out)
            if repair is None and self.repair.retain is not config.Retain.NONE:
                rule, way_out = "must be none if nothing is trained", "Leave retain out, or choose a repair method."
                raise ConfigError("retain", rule, str(self.repair.retain), way_out)
            config.require_repair_of(prune, repair)
        except ConfigError as error:
            raise _located(error) from error
        return self

    def prune_config(self) -> config.PruneConfig:
        """Return the pruning settings of the library. Fields of the same name have the same meaning."""
        values = {**dict(self), **dict(self.prune), **dict(self.prune.calibration)}
        values["pattern"] = config.Pattern.parse(self.pattern)
        return config.PruneConfig(
            **{each.name: values[each.name] for each in fields(config.PruneConfig) if each.name in values}
        )

    def repair_config(self, micro_batch: int | None = None) -> config.RepairConfig | None:
        """Return the repair settings of the library, or None if the job only prunes.

        `micro_batch` overrides the value of the request, if it is set.
        """
        if self.repair.method is RepairMethod.NONE:
            return None
        values = {**dict(self.repair), "method": config.RepairMethod(self.repair.method), "seed": self.seed}
        return config.RepairConfig(**{**values, "micro_batch": micro_batch or self.repair.micro_batch})

    def evaluate_config(self) -> config.EvaluateConfig:
        """Return the evaluation settings of the library."""
        return config.EvaluateConfig(tokens=self.evaluate.tokens, windows=self.evaluate.windows)

    @property
    def scored(self) -> tuple[str, ...]:
        """The models of the job that are evaluated, in order."""
        pruned = () if self.prune.schedule is PruneSchedule.GRADUAL else ("pruned",)
        return ("dense", *pruned, *(() if self.repair.method is RepairMethod.NONE else ("repaired",)))

    def fingerprint(self) -> str:
        """Return the SHA-256 of all values that are not defaults. It is equal for requests with equal meaning.

        A field that a later version adds does not change the fingerprint of older requests.
        """
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _located(error: ConfigError) -> ValidationError:
    """Return an error of the library as an error of the field of the request that it names."""
    parts: dict[str, type[Spec]] = {"prune": PruneSpec, "repair": RepairSpec}
    found = ((part, error.field) for part, spec in parts.items() if error.field in spec.model_fields)
    kind = PydanticCustomError("contradiction", "{rule}", {"rule": error.rule, "way_out": error.way_out})
    details = InitErrorDetails(type=kind, loc=next(found, tuple(error.field.split("."))), input=error.value)
    return ValidationError.from_exception_data("JobSpec", [details])


def with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored request, with the defaults of fields that were added since it was stored.

    A request of another version that is invalid now is returned without changes.
    """
    try:
        return JobSpec.model_validate(stored).model_dump(mode="json")
    except ValidationError:
        return stored
