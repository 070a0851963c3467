"""The request of a job. The API and the column `spec` of the job's row use the same model.

Only `model`, `dataset` and `sparsity` are required. Unknown fields are rejected. The allowed words are the values of
the library's enums. The allowed ranges are the same as in `seft.config`; a test checks this. Rules about several fields
come from the library, so a valid request can be converted to the library's settings.
"""

import hashlib
import json
from dataclasses import fields
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from core import ids
from core.request_fields import EXAMPLE_DATASET, Boolean, Integer, Number, Revision, Spec, StorableText
from core.spec_parts import (
    DERIVED,
    EvaluateSpec,
    OutputSpec,
    PruneSpec,
    RepairMethod,
    RepairSpec,
)
from seft import config
from seft.config import MOST_SPARSE, Allocation, Retain, SparsityOf
from seft.errors import ConfigError

SPEC_VERSION = 17
"""Version of the fields of a request. Raise it with every change, so that older workers do not claim new requests."""
MAX_SECONDS = 366 * 24 * 3600
SHARDABLE = (RepairMethod.NONE, RepairMethod.SEFT, RepairMethod.FIXED_MASK, RepairMethod.MASKED_FULL)
"""Methods that can train a model that is split over devices."""
MIN_TOKENS = 2
"""Smallest number of tokens of a sequence. The first token is not predicted."""


def _describe_job(schema: dict[str, Any]) -> None:
    schema["required"].remove("sparsity")
    schema["example"] = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "dataset": EXAMPLE_DATASET,
        "sparsity": 0.6,
    }


def _implied_sparsity(pattern: object) -> float:
    """Return the fraction of zeros in an N:M pattern, or 0 for anything else."""
    try:
        return min(config.Pattern.parse(str(pattern)).sparsity(None), MOST_SPARSE)
    except ConfigError:
        return 0.0


class Dtype(StrEnum):
    """Data type of the weights while a job runs. When a worker claims the job, another value replaces `auto`."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


Flops = dict[Dtype, float]
"""Operations per second in a product of matrices, by the data type of the matrices."""


class JobSpec(Spec):
    """A repair job: make `model` sparse, then repair it on `dataset`."""

    model_config = ConfigDict(json_schema_extra=_describe_job)

    model: StorableText = Field(
        min_length=1,
        max_length=512,
        description="Id of a hub model, path of a model in a folder that the operator made available, or id of a job"
        " whose result to use.",
    )
    revision: Revision | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    dataset: str = Field(
        pattern=ids.pattern("file"), description="Id of an uploaded dataset. `POST /datasets` uploads one."
    )
    sparsity: Number = Field(
        ge=0.0,
        le=0.99,
        description="Fraction of weights to set to zero. Optional with an N:M `pattern`, which implies it. 0 keeps the"
        " zeros of a model that is pruned already.",
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
        default=Allocation.AUTO,
        description="`uniform`: all pruned layers are equally sparse. Else they differ, with the same total. `auto`:"
        " `curvature` for one-shot `admm` and `alps` if rows may differ and `sharded` is false, else `uniform`.",
    )
    prune: PruneSpec = Field(default_factory=PruneSpec, description="How the model is pruned.")
    repair: RepairSpec = Field(
        default_factory=partial(RepairSpec.model_validate, {}), description="How the pruned model is repaired."
    )
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="How the models are evaluated.")
    output: OutputSpec = Field(default_factory=OutputSpec, description="Formats and lifetime of the checkpoint.")
    dtype: Dtype = Field(
        default=Dtype.AUTO,
        description="Data type of the weights while the job runs. `auto`: `bfloat16` if the worker's device has"
        " instructions for it, as GPUs since Ampere and processors with AVX-512 BF16 or AMX have, else `float32`."
        " `bfloat16` needs half the memory. Training was 1.6 to 2.2 times as fast with these instructions, and slower"
        " without them. The result is bfloat16 in any case.",
    )
    devices: Integer = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of devices of one worker that train the model together. Each reads its part of every batch,"
        " and has the whole model if `sharded` is false. Only a worker with so many devices runs the job.",
    )
    sharded: Boolean = Field(
        default=False,
        description="Split the weights of the model over the devices of the job, so it does not have to fit on one"
        " device. Each part is gathered while it computes, so a step sends much more data.",
    )
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
            examples=[{"team": "search"}],
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_sparsity(cls, data: Any) -> Any:
        if isinstance(data, dict) and "sparsity" not in data and data.get("pattern", "unstructured") != "unstructured":
            # A wrong pattern is an error of `pattern`, not of a field that was not sent.
            return {**data, "sparsity": _implied_sparsity(data["pattern"])}
        return data

    @field_validator("pattern")
    @classmethod
    def _require_possible_pattern(cls, value: str) -> str:
        try:
            config.Pattern.parse(value)
        except ConfigError as error:
            raise _contradiction(error.rule, error.way_out) from error
        return value

    @model_validator(mode="after")
    def _require_settings_of_library(self) -> Self:
        """Reject values that contradict each other. The rules are those of the library."""
        try:
            prune, repair = self.prune_config(), self.repair_config()
            if prune.gradual and repair is None:
                way_out = "Use the method seft with density all, or the schedule one_shot."
                raise ConfigError("repair.method", "must be seft with the schedule gradual", "none", way_out)
            config.require_repair_of(prune, repair)
            if repair:
                repair.require_processes(self.devices)
            self._require_shardable()
            self._require_retained_dataset()
            self._require_evaluation_dataset()
        except ConfigError as error:
            raise _located(error) from error
        return self

    def _require_shardable(self) -> None:
        """Raise ConfigError if `sharded` is true and the job cannot run with a model that is split over devices."""
        if not self.sharded:
            return
        if self.devices == 1:
            raise ConfigError("sharded", "must be false on one device", True, "Ask for several devices.")
        if self.repair.method not in SHARDABLE:
            rule, way_out = f"must be one of {', '.join(SHARDABLE)} if sharded is true", "Use one of these."
            raise ConfigError("repair.method", rule, str(self.repair.method), way_out)
        if self.allocation is Allocation.CURVATURE:
            rule, way_out = "must not be curvature if sharded is true", "Leave allocation out. It becomes uniform."
            raise ConfigError("allocation", rule, str(self.allocation), way_out)
        for field, value in (
            ("prune.reconstruct_epochs", self.prune.reconstruct_epochs),
            ("repair.distill_weight", self.repair.distill_weight),
            ("repair.hidden_weight", self.repair.hidden_weight),
        ):
            if value:
                way_out = "Set it to 0, or sharded to false. The dense model would have to be in memory too."
                raise ConfigError(field, "must be 0 if sharded is true", value, way_out)

    def _require_retained_dataset(self) -> None:
        """Raise ConfigError if `retain_dataset` contradicts `retain`, or if it is the training dataset."""
        retains, dataset = self.repair.retain is Retain.DATASET, self.repair.retain_dataset
        if retains and dataset is None:
            way_out = "Use the id of a dataset, or set retain to written or none."
            raise ConfigError("retain_dataset", "must be given if retain is dataset", None, way_out)
        if dataset is not None and not retains:
            way_out = "Leave it out, or set retain to dataset."
            rule = f"must be left out if retain is {self.repair.retain}"
            raise ConfigError("retain_dataset", rule, dataset, way_out)
        if dataset == self.dataset:
            way_out = "Use another dataset, or set distill_weight to learn the dense model's predictions for this one."
            raise ConfigError("retain_dataset", "must be another dataset than the one in dataset", dataset, way_out)

    def _require_evaluation_dataset(self) -> None:
        """Raise ConfigError if `evaluate.dataset` contradicts `evaluate.held_out`, or is a dataset to train on."""
        dataset, held_out = self.evaluate.dataset, self.evaluate.held_out
        if dataset is None:
            return
        if held_out is not None:
            way_out = "Leave out one of the two."
            raise ConfigError("evaluate.held_out", "must be left out if evaluate.dataset is given", held_out, way_out)
        if dataset in (self.dataset, self.repair.retain_dataset):
            rule = "must not be the dataset in dataset or repair.retain_dataset, because the job trains on those"
            way_out = "Use another dataset, or leave it out to hold out a part of dataset."
            raise ConfigError("evaluate.dataset", rule, dataset, way_out)

    def resolve_dtype(self, *, bfloat16: bool) -> Self:
        """Return the request with the data type that `auto` means on a device.

        `bfloat16` says whether the device has instructions for bfloat16.
        """
        if self.dtype is not Dtype.AUTO:
            return self
        return self.model_copy(update={"dtype": Dtype.BFLOAT16 if bfloat16 else Dtype.FLOAT32})

    @property
    def resolved_dtype(self) -> Dtype:
        """Data type of the weights while the job runs. Raises ValueError if it is `auto`."""
        if self.dtype is Dtype.AUTO:
            raise ValueError("the dtype must be float32 or bfloat16; it is auto. Call resolve_dtype.")
        return self.dtype

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight or an activation while the job runs. Raises ValueError if the data type is `auto`."""
        return 4 if self.resolved_dtype is Dtype.FLOAT32 else 2

    def prune_config(self) -> config.PruneConfig:
        """Return the pruning settings of the library. Fields of the same name have the same meaning."""
        values = {**dict(self), **dict(self.prune), **dict(self.prune.calibration)}
        values["pattern"] = config.Pattern.parse(self.pattern)
        if self.sharded and self.allocation is Allocation.AUTO:
            values["allocation"] = Allocation.UNIFORM
        return config.PruneConfig(
            **{each.name: values[each.name] for each in fields(config.PruneConfig) if each.name in values}
        )

    def repair_config(self, micro_batch: int | None = None) -> config.RepairConfig | None:
        """Return the repair settings of the library, or None if the job only prunes.

        `micro_batch` is set if the job ran out of memory. It overrides the value of the request, and the activations
        are computed again in the backward pass.
        """
        if self.repair.method is RepairMethod.NONE:
            return None
        values = {**dict(self.repair), "method": config.RepairMethod(self.repair.method), "seed": self.seed}
        del values["retain_dataset"]
        if micro_batch is not None:
            values |= {"micro_batch": micro_batch, "activation_checkpointing": True}
        return config.RepairConfig(**values)

    def within(self, context: int | None) -> Self:
        """Return the request with sequences at most as long as a model's context, where their length was left out.

        If the length of a training sequence changes, the size of a batch and the number of steps are chosen again,
        unless they were given.
        """
        if context is None:
            return self
        tokens, calibration = max(MIN_TOKENS, context), self.prune.calibration
        changes: dict[str, Spec] = {}
        if "tokens" not in calibration.model_fields_set and tokens < calibration.tokens:
            shorter = calibration.model_copy(update={"tokens": tokens})
            changes["prune"] = self.prune.model_copy(update={"calibration": shorter})
        if "sequence_tokens" not in self.repair.model_fields_set and tokens < self.repair.sequence_tokens:
            given = self.repair.model_dump(exclude_unset=True)
            changes["repair"] = RepairSpec.model_validate({**given, "sequence_tokens": tokens})
        if "tokens" not in self.evaluate.model_fields_set and tokens < self.evaluate.tokens:
            changes["evaluate"] = self.evaluate.model_copy(update={"tokens": tokens})
        return self.model_copy(update=changes)

    @property
    def trains_all(self) -> bool:
        """True if the job trains all nonzeros in place."""
        config = self.repair_config()
        return config is not None and config.trains_all

    def zeros(self, parameters: int, targets: int) -> int:
        """Return about how many of a model's `parameters` weights will be zero. `targets` of them are in pruned layers.

        With the sparsity 0, the zeros of the model are not known, and the result is 0.
        """
        return round(self.sparsity * (parameters if self.sparsity_of is SparsityOf.MODEL else targets))

    @property
    def prunes(self) -> bool:
        """True if a pruning method runs before the training."""
        return not (self.prune.gradual or self.prune_config().keeps_zeros)

    @property
    def reconstructs(self) -> bool:
        """True if blocks are reconstructed after pruning."""
        return self.prunes and self.prune.reconstruct_epochs > 0

    @property
    def retained_tokens(self) -> int:
        """Largest number of tokens of retained text. A small dataset has fewer."""
        config = self.repair_config()
        return config.retained_windows * config.sequence_tokens if config and config.retains else 0

    @property
    def written_at_once(self) -> int:
        """Number of windows of retained text that the dense model writes at the same time. 0 if it writes none."""
        config = self.repair_config()
        return config.written_at_once if config and config.retain is Retain.WRITTEN else 0

    def evaluate_config(self) -> config.EvaluateConfig:
        """Return the evaluation settings of the library."""
        return config.EvaluateConfig(tokens=self.evaluate.tokens, windows=self.evaluate.windows)

    @property
    def scored(self) -> tuple[str, ...]:
        """The models of the job that are evaluated, in order."""
        pruned = () if self.prune.gradual else ("pruned",)
        return ("dense", *pruned, *(() if self.repair.method is RepairMethod.NONE else ("repaired",)))

    def fingerprint(self) -> str:
        """Return the SHA-256 of all values that are not defaults. It is equal for requests with equal meaning.

        A field that a later version adds does not change the fingerprint of older requests.
        """
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def _contradiction(rule: str, way_out: str) -> PydanticCustomError:
    """Return an error for a validator to raise. Its advice replaces the general advice of the field."""
    return PydanticCustomError("contradiction", "{rule}", {"rule": rule, "way_out": way_out})


def _located(error: ConfigError) -> ValidationError:
    """Convert an error of the library to an error of the request at the field that it names."""
    parts: dict[str, type[Spec]] = {"prune": PruneSpec, "repair": RepairSpec}
    found = ((part, error.field) for part, spec in parts.items() if error.field in spec.model_fields)
    way_out = f"{error.way_out} Or send null, to derive it again." if error.field in DERIVED else error.way_out
    kind = _contradiction(error.rule, way_out)
    details = InitErrorDetails(type=kind, loc=next(found, tuple(error.field.split("."))), input=error.value)
    return ValidationError.from_exception_data("JobSpec", [details])
