"""How a job evaluates its models."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from core import ids
from core.request_fields import EXAMPLE_DATASET, WITHIN_CONTEXT, Integer, Number, Spec

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
