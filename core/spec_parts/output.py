"""How a job publishes its result."""

from typing import Annotated, Any

from huggingface_hub.utils._validators import validate_repo_id
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from core.request_fields import Boolean, Integer, Spec
from seft import config
from seft.config import OutputFormat
from seft.errors import ConfigError


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
