"""What a job asks for, as it comes over the wire and as it stands in the row: one model for both.

Only `model`, `dataset` and `sparsity` are required. Unknown fields are refused. The ranges repeat those of
`seft.config` on purpose, so that a request is refused at the door; a test holds them equal.
"""

import hashlib
import json
import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from core import ids
from seft import config
from seft.config import DEFAULT_PRUNER, Allocation, Compare, DropDecay, PruneMethod, Refinement, SparsityOf

SPEC_VERSION = 4
"""Raised with every change of what a request may hold, so that a worker leaves what it cannot know to a newer one."""


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold the character NUL, which Postgres cannot keep")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must be Unicode text; it holds half of a surrogate pair")
    return value


Line = Annotated[str, AfterValidator(_storable)]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# As JSON Schema has them: no text is read for a number or a truth value, none of the two for the other; 5.0 is whole.
WHOLE = BeforeValidator(_whole)
Integer = Annotated[int, Strict(), WHOLE]
Number = Annotated[float, Strict()]
Boolean = Annotated[bool, Strict()]


class Spec(BaseModel):
    """Base: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationSpec(Spec):
    """The text that the pruner looks at."""

    samples: Integer = Field(default=128, ge=1, le=4096, description="Windows of calibration text.")
    tokens: Integer = Field(default=2048, ge=2, le=131072, description="Tokens in each window.")


class PruneSpec(Spec):
    """How the model is pruned."""

    method: PruneMethod = Field(default=DEFAULT_PRUNER, description="How a weight's importance is judged.")
    compare: Compare = Field(
        default=Compare.AUTO, description="Importance is compared within `row` or `layer`; `auto` is the method's way."
    )
    refine: Refinement = Field(default=Refinement.NONE, description="`dsnot` improves the mask that the method chose.")
    reconstruct_epochs: Integer = Field(
        default=0, ge=0, le=100, description="How often each block is tuned on that text, to do what the dense one did."
    )
    reconstruct_learning_rate: Number = Field(default=2e-4, ge=1e-8, le=1.0, description="Of that tuning.")
    calibration: CalibrationSpec = Field(default_factory=CalibrationSpec, description="The text the pruner looks at.")

    @field_validator("compare")
    @classmethod
    def _own_way(cls, value: Compare, info: ValidationInfo) -> Compare:
        if value is not Compare.AUTO and info.data.get("method") is PruneMethod.SPARSEGPT:
            raise ValueError("must be auto for sparsegpt, which compares within 128 columns at a time")
        return value


class RepairMethod(StrEnum):
    """What is trained to repair the pruned model; `none` only prunes."""

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
        default=RepairMethod.SEFT, description="What is trained; `none` prunes only, all but `seft` keep the zeros."
    )
    density: Number = Field(
        default=0.005, ge=1e-6, le=1.0, description="Values trained, as a share of the target weights."
    )
    steps: Integer = Field(default=500, ge=1, le=1_000_000, description="Optimizer steps.")
    learning_rate: Annotated[Number, Field(ge=1e-8, le=1.0)] | Literal["auto"] = Field(
        default="auto", description="Peak learning rate; `auto` chooses by method and density."
    )
    update_interval: Integer = Field(
        default=60, ge=1, le=1_000_000, description="Steps between two events of the topology."
    )
    drop_rate: Number = Field(default=0.2, ge=0.0, le=1.0, description="Share of the active set replaced at an event.")
    drop_decay: DropDecay = Field(
        default=DropDecay.LINEAR, description="How that share falls to none at the last step."
    )
    batch_tokens: Integer = Field(default=16384, ge=2, le=1 << 24, description="Tokens of one optimizer step.")
    sequence_tokens: Integer = Field(
        default=512, ge=2, le=131072, description="Tokens of one window; divides `batch_tokens`."
    )
    micro_batch: Integer = Field(
        default=1, ge=1, le=4096, description="Windows on the device at a time: memory and speed, not what is learnt."
    )
    clip_norm: Annotated[Number, Field(ge=1e-4, le=1e4)] | None = Field(
        default=None, description="Largest norm of a step's gradient over all trained values; `null` sets no limit."
    )
    distill_weight: Number = Field(
        default=0.0, ge=0.0, le=1.0, description="Share of the dense model's predictions in what is learnt; 0 is none."
    )
    hidden_weight: Number = Field(
        default=0.0, ge=0.0, le=100.0, description="Weight of the dense model's hidden states; 0 switches them off."
    )

    evaluate_interval: Integer = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Steps between two evaluations on the held-out text, of which the best state is kept; 0 is none.",
    )
    patience: Integer = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Training ends after so many evaluations in a row that found nothing better; 0 is never.",
    )

    @model_validator(mode="after")
    def _patience_with_evaluations(self) -> Self:
        if self.patience and not self.evaluate_interval:
            raise ValueError(f"patience ({self.patience}) must be 0 without evaluate_interval")
        return self

    @model_validator(mode="after")
    def _whole_windows(self) -> Self:
        if self.batch_tokens % self.sequence_tokens:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_tokens ({self.sequence_tokens})"
            )
        return self


class EvaluateSpec(Spec):
    """How the dense, the pruned and the repaired model are judged."""

    held_out: Number = Field(
        default=0.1, gt=0.0, lt=1.0, description="Share of the dataset's records kept from training and judged on."
    )
    tasks: tuple[Literal["perplexity"], ...] = Field(
        default=("perplexity",), min_length=1, max_length=1, description="What is measured."
    )
    windows: Integer = Field(
        default=20, ge=1, le=4096, description="Held-out windows; fewer are taken where there are fewer."
    )
    tokens: Integer = Field(default=1024, ge=2, le=131072, description="Tokens in each held-out window.")


class OutputSpec(Spec):
    """What the checkpoint looks like."""

    format: Literal["dense"] = Field(default="dense", description="A Hugging Face folder with exact zeros.")
    retention_days: Integer = Field(
        default=30, ge=0, le=36500, description="Days after which the checkpoint is deleted; 0: never."
    )


def _describe_job(schema: dict[str, Any]) -> None:
    schema["required"].remove("sparsity")
    schema["example"] = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "dataset": "file_01jz5h4c8m2v9q7w3t6x0y1b2d",
        "sparsity": 0.6,
    }


def _share(pattern: object) -> float | None:
    """The share of zeros in an N:M pattern; None where it is none."""
    numbers = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", pattern) if isinstance(pattern, str) else None
    return 1 - int(numbers[1]) / int(numbers[2]) if numbers else None


class JobSpec(Spec):
    """A repair job: make `model` sparse, and repair it on `dataset`."""

    model_config = ConfigDict(json_schema_extra=_describe_job)

    model: Line = Field(
        min_length=1,
        max_length=512,
        description="A hub id, a folder or GGUF file under one of the model roots, or a job: what it has published.",
    )
    revision: Line | None = Field(default=None, max_length=128, description="Branch, tag or commit of a hub model.")
    dataset: str = Field(pattern=ids.pattern("file"), description="Id of an uploaded dataset.")
    sparsity: Number = Field(
        ge=0.0, le=0.99, description="Share of zeros. It follows from an N:M `pattern`, and may be left out then."
    )
    pattern: str = Field(
        default="unstructured",
        pattern=r"^(unstructured|[1-9]\d{0,3}:[1-9]\d{0,3})$",
        description="Where zeros may lie: `unstructured`, or N:M, N nonzeros in every M inputs, as in `2:4`.",
    )
    sparsity_of: SparsityOf = Field(
        default=SparsityOf.TARGETS,
        description="What `sparsity` is a share of: the weights of the target linears, or all of the `model`.",
    )
    allocation: Allocation = Field(
        default=Allocation.UNIFORM,
        description="How zeros are shared out over the target linears: `uniform`, or by block; always as many in all.",
    )
    prune: PruneSpec = Field(default_factory=PruneSpec, description="How the model is pruned.")
    repair: RepairSpec = Field(default_factory=RepairSpec, description="How the pruned model is repaired.")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="How the models are judged.")
    output: OutputSpec = Field(default_factory=OutputSpec, description="What the checkpoint looks like.")
    auto_start: Boolean = Field(default=True, description="`false`: the job waits for `POST /jobs/{job_id}/start`.")
    priority: Integer = Field(default=0, ge=-100, le=100, description="Higher is taken first.")
    seed: Integer = Field(default=0, ge=0, lt=2**63, description="Everything random follows from it.")
    suffix: Line | None = Field(default=None, max_length=64, description="Name of the result, for people.")
    metadata: dict[Annotated[Line, Field(max_length=64)], Annotated[Line, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=16, description="Up to 16 names and values of yours, kept with the job."
    )

    @model_validator(mode="before")
    @classmethod
    def _sparsity_of_pattern(cls, data: Any) -> Any:
        if isinstance(data, dict) and "sparsity" not in data:
            share = _share(data.get("pattern"))
            return data if share is None else {**data, "sparsity": share}
        return data

    @field_validator("pattern")
    @classmethod
    def _no_contradiction(cls, value: str, info: ValidationInfo) -> str:
        share = _share(value)
        if share is not None and not 0 < share < 1:
            raise ValueError("must be N:M with N smaller than M")
        sparsity = info.data.get("sparsity")
        if share is not None and sparsity is not None and abs(sparsity - share) > 1e-9:
            raise ValueError(f"must not contradict sparsity ({sparsity}); {value} makes it {share:g}")
        return value

    @field_validator("allocation", "sparsity_of", "prune")
    @classmethod
    def _suits_groups(cls, value: Any, info: ValidationInfo) -> Any:
        pattern = info.data.get("pattern", "unstructured")
        if pattern == "unstructured":
            return value
        if isinstance(value, PruneSpec) and value.compare is not Compare.AUTO:
            raise ValueError(f"compare must be auto with the pattern {pattern}; it is {value.compare}")
        if value in (Allocation.OWL, Allocation.ALPHAPRUNING, SparsityOf.MODEL):
            raise ValueError(
                f"must be {'targets' if value is SparsityOf.MODEL else 'uniform'} with the pattern {pattern}"
            )
        return value

    def fingerprint(self) -> str:
        """sha256 of what differs from the defaults: equal for two bodies that ask for the same.

        A field that a later version adds changes no fingerprint.
        """
        canonical = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def shown(stored: dict[str, Any]) -> dict[str, Any]:
    """A request as it stands in a row, with the defaults of all that came since; as it stands where we refuse it.

    It is other software's then, older or newer.
    """
    try:
        return JobSpec.model_validate(stored).model_dump(mode="json")
    except ValidationError:
        return stored
