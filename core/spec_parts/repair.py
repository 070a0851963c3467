"""How a job repairs its model."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from core import ids
from core.request_fields import EXAMPLE_DATASET, WITHIN_CONTEXT, Boolean, Integer, Number, Spec
from seft import config
from seft.config import DropDecay, Variant


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
        " nonzeros in place, with `seft` only. `auto` is `all` with `seft` in the variant `improved`, else 0.005.",
    )
    steps: Integer = Field(
        ge=1,
        le=1_000_000,
        description="Number of optimizer steps. By default, training reads about 8 million tokens: the number is"
        " 8388608 divided by `batch_tokens`.",
    )
    learning_rate: Annotated[Number, Field(ge=1e-8, le=1.0)] | Literal["auto"] = Field(
        default="auto",
        description="Peak learning rate. `auto` chooses it from the method, the density, the width of the model and,"
        " with the density `all`, the number of steps.",
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
        description="Number of sequences that all devices process at a time, a multiple of `devices`. Changes memory"
        " and speed. It also changes the result, by rounding and by which weights an event of `seft` chooses.",
    )
    activation_checkpointing: Boolean = Field(
        default=False,
        description="Compute the activations of a block again in the backward pass, instead of storing them. Needs less"
        " memory and 1.3 times the time, and does not change the result. A job that ran out of memory in training is"
        " retried with it.",
    )
    clip_norm: Annotated[Number, Field(ge=1e-4, le=1e4)] | None = Field(
        default=None,
        description="Gradient clipping: the maximum norm. A larger gradient is scaled down. `null` sets no limit.",
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
        " `dataset` in `retain_dataset`, or `none`. With the sparsity 0 there is no dense model, so it is `none`.",
    )
    retain_dataset: Annotated[str, Field(pattern=ids.pattern("file"))] | None = Field(
        default=None,
        description="Id of an uploaded dataset to retain, if `retain` is `dataset`. It must not be the `dataset`.",
        examples=[EXAMPLE_DATASET],
    )
    retain_share: Number = Field(default=0.5, ge=0.01, le=0.9, description="Fraction of retained text in each batch.")
    retain_tokens: Integer = Field(
        default=1 << 18, ge=2, le=1 << 22, description="Largest number of tokens of retained text."
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
