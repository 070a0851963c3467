"""The parts of a job's request: how the model is pruned, repaired, evaluated and published."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from huggingface_hub.utils._validators import validate_repo_id
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from core import ids
from core.request_fields import Boolean, Integer, Number, Spec
from seft import config
from seft.config import (
    DEFAULT_PRUNER,
    Compare,
    DropDecay,
    OutputFormat,
    PruneMethod,
    PruneSchedule,
    Refinement,
    Variant,
)
from seft.errors import ConfigError

EXAMPLE_DATASET = "file_01jz5h4c8m2v9q7w3t6x0y1b2d"
CPU_SETTINGS: dict[str, dict[str, Any]] = {
    "prune": {"calibration": {"samples": 8, "tokens": 512}},
    "repair": {"steps": 14, "retain_tokens": 4096},
    "evaluate": {"windows": 8, "tokens": 512},
}
"""Fields with which a small model is repaired in minutes on a CPU. The defaults are for a GPU."""
WITHIN_CONTEXT = "At most the context length of the model. A longer default is lowered to it."


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
        " `model`. `auto` follows the paper of the method. Only `row` gives every row the same number of zeros, rounded"
        " down.",
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


DERIVED = frozenset({"batch_tokens", "steps"})
"""Fields of a repair whose defaults depend on other fields."""


def _describe_repair(schema: dict[str, Any]) -> None:
    del schema["required"]  # these fields have defaults that depend on others


class RepairSpec(Spec):
    """How the pruned model is repaired."""

    model_config = ConfigDict(json_schema_extra=_describe_repair)

    method: RepairMethod = Field(
        default=RepairMethod.SEFT,
        description="What is trained; `none` only prunes. Only `seft` and `lora_reprune` can move the zeros.",
    )
    density: Annotated[Number, Field(ge=1e-6, le=1.0)] | Literal["auto", "all"] = Field(
        default="auto",
        description="Number of trained values, as a fraction of the weights in the pruned layers. `all` trains all"
        " nonzeros in place, with `seft` only. `auto` is `all` with `seft`, except the variant `published`, and"
        " otherwise 0.005.",
    )
    steps: Integer = Field(
        ge=1,
        le=1_000_000,
        description="Number of optimizer steps. By default, training reads about 8 million tokens: the number is"
        " 8388608 divided by `batch_tokens`.",
    )
    learning_rate: Annotated[Number, Field(ge=1e-8, le=1.0)] | Literal["auto"] = Field(
        default="auto",
        description="Peak learning rate. `auto` chooses it from the method, the density and the width of the model.",
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
        description="Fraction of the trained weights that a topology update exchanges. It falls from this value to 0 at"
        " the last step. The first update exchanges all of them.",
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
        description="Tokens between two events that swap zeros and nonzeros, with the density `all` on one device. 0 is"
        " off.",
    )
    batch_tokens: Integer = Field(
        ge=2, le=1 << 24, description="Tokens per optimizer step. By default two sequences of `sequence_tokens`."
    )
    sequence_tokens: Integer = Field(
        default=512,
        ge=2,
        le=131072,
        description=f"Tokens per training sequence. Must divide `batch_tokens`. {WITHIN_CONTEXT}",
    )
    micro_batch: Integer = Field(
        default=2,
        ge=1,
        le=4096,
        description="Number of sequences on all devices of the job at a time, a multiple of `devices`. Changes memory"
        " and speed, not the result.",
    )
    activation_checkpointing: Boolean = Field(
        default=False,
        description="Compute the activations of a block again in the backward pass, instead of storing them. Needs less"
        " memory and 1.3 times the time, and does not change the result. A job that ran out of memory in training is"
        " retried with it.",
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
    retain: config.Retain = Field(
        default=config.Retain.WRITTEN,
        description="Text on which the model keeps what the dense model predicts: `written` by the dense model, the"
        " `dataset` in `retain_dataset`, or `none`.",
    )
    retain_dataset: Annotated[str, Field(pattern=ids.pattern("file"))] | None = Field(
        default=None,
        description="Id of an uploaded dataset to retain, if `retain` is `dataset`. It must not be the `dataset`.",
        examples=[EXAMPLE_DATASET],
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

    @model_validator(mode="wrap")
    @classmethod
    def _fill_sizes(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Choose the size of a batch by the length of a sequence, and the number of steps by the size of a batch.

        The chosen values count as left out, so `model_fields_set` does not contain them.
        """
        if not isinstance(data, dict):
            return validate(data)
        given = {name for name, value in data.items() if name not in DERIVED or value is not None}
        default = cls.model_fields["sequence_tokens"].default
        batch = config.default_batch(_size(data.get("sequence_tokens"), default))
        batch_tokens = batch if data.get("batch_tokens") is None else data["batch_tokens"]
        steps = config.default_steps(_size(batch_tokens, batch)) if data.get("steps") is None else data["steps"]
        spec = validate({**data, "batch_tokens": batch_tokens, "steps": steps})
        spec.model_fields_set.intersection_update(given)
        return spec

    @property
    def retains(self) -> bool:
        """True if a part of each batch is text on which the model keeps the predictions of the dense model."""
        return self.method is not RepairMethod.NONE and self.retain is not config.Retain.NONE


def _size(value: object, default: int) -> int:
    """Return a number of tokens of a request, or the default if it is not valid."""
    return int(value) if isinstance(value, int | float) and 2 <= value <= 1 << 24 else default


HELD_OUT = 0.1
"""Default of `held_out`."""


class EvaluateSpec(Spec):
    """How the dense, the pruned and the repaired model are evaluated."""

    dataset: Annotated[str, Field(pattern=ids.pattern("file"))] | None = Field(
        default=None,
        description="Id of an uploaded dataset to evaluate on, in place of a part of the training dataset.",
        examples=[EXAMPLE_DATASET],
    )
    held_out: Number | None = Field(
        default=HELD_OUT,
        gt=0.0,
        lt=1.0,
        description="Fraction of the training dataset's records that is held out from training and used for"
        f" evaluation. {HELD_OUT} unless the evaluation has a dataset of its own.",
    )
    windows: Integer = Field(
        default=20,
        ge=1,
        le=4096,
        description="Number of held-out sequences to evaluate on. If there are fewer, all are used.",
    )
    tokens: Integer = Field(
        default=1024, ge=2, le=131072, description=f"Tokens per held-out sequence. {WITHIN_CONTEXT}"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_held_out(cls, data: Any) -> Any:
        """Hold out the default fraction if the request names neither a fraction nor a dataset to evaluate on."""
        if not isinstance(data, dict) or data.get("held_out") is not None:
            return data
        return {**data, "held_out": HELD_OUT if data.get("dataset") is None else None}

    @model_validator(mode="before")
    @classmethod
    def _read_tasks(cls, data: Any) -> Any:
        """Read requests of versions before 16, whose field `tasks` could only be `["perplexity"]`."""
        if isinstance(data, dict) and data.get("tasks") == ["perplexity"]:
            return {name: value for name, value in data.items() if name != "tasks"}
        return data


def _named_format(value: object) -> object:
    """Return the format of this name. Raises ValueError with the reason if the format would not keep the model."""
    try:
        return config.parse_format(value) if isinstance(value, str) else value
    except ConfigError as error:
        raise ValueError(error.rule) from error


def _distinct(values: tuple[OutputFormat, ...]) -> tuple[OutputFormat, ...]:
    if not values or len({*values}) < len(values):
        raise ValueError("must name at least one format, and each once")
    return values


def _valid_repository(name: str) -> str:
    validate_repo_id(name)  # raises HFValidationError, which is a ValueError
    return name


Repository = Annotated[
    str,
    Field(max_length=96, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$"),
    AfterValidator(_valid_repository),
]
"""Name of a repository on the model hub: `owner/name`."""


class PushSpec(Spec):
    """The repository of the model hub into which the result is copied."""

    repository: Repository | None = Field(
        default=None,
        description="Repository of the model hub (`owner/name`) into which the result is pushed with your tenant's hub"
        " token. It is created if it does not exist.",
        examples=["acme/model-sparse"],
    )
    private: Boolean = Field(default=True, description="Whether the repository is private if the push creates it.")
    revision: str = Field(
        default="main",
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$",
        description="Branch of the repository. It is created if it does not exist.",
    )


class OutputSpec(Spec):
    """Formats of the checkpoint, how long it is kept, and where it is pushed to."""

    formats: Annotated[
        tuple[Annotated[OutputFormat, BeforeValidator(_named_format)], ...], AfterValidator(_distinct)
    ] = Field(
        default=(OutputFormat.DENSE,),
        description="Formats in which the model is published. Each keeps every zero. `dense` is a Hugging Face folder"
        " in bfloat16; only with it can another job use the result. Each of the others is one file. `compact` has the"
        " same model and takes little space for zeros; `compact_int8` and `compact_nf4` have nonzero weights of 8 and"
        " 4 bits. GGUF is for llama.cpp, with the same values (`gguf_bf16`) or"
        " with 8 or 4 bits per weight (`gguf_q8_0`, `gguf_q4_0`).",
        examples=[["dense", "compact"]],
        json_schema_extra={"minItems": 1, "uniqueItems": True},
    )
    retention_days: Integer = Field(
        default=30, ge=0, le=36500, description="Days after which the checkpoint is deleted; 0 keeps it permanently."
    )
    push: PushSpec = Field(default_factory=PushSpec, description="Repository into which the result is pushed.")

    @model_validator(mode="before")
    @classmethod
    def _read_single_format(cls, data: Any) -> Any:
        """Read requests of versions before 9, whose field `format` could only be `dense`."""
        if isinstance(data, dict) and data.get("format") == OutputFormat.DENSE:
            return {name: value for name, value in data.items() if name != "format"}
        return data
