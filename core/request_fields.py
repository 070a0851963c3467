"""Types of the fields of requests, the base class of all request models, and the rule that a wrong value breaks."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain the character NUL, which Postgres cannot store")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must be valid Unicode text; it contains half of a surrogate pair")
    return value


StorableText = Annotated[str, AfterValidator(_storable)]
Revision = Annotated[StorableText, Field(max_length=255)]
"""Branch, tag or commit of a hub model."""


def _to_int(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The types of JSON Schema: a string is neither a number nor a boolean, a boolean is not a number, 5.0 is an integer.
WHOLE = BeforeValidator(_to_int)
Integer = Annotated[int, Strict(), WHOLE]
Number = Annotated[float, Strict()]
Boolean = Annotated[bool, Strict()]
EXAMPLE_DATASET = "file_01jz5h4c8m2v9q7w3t6x0y1b2d"
WITHIN_CONTEXT = "At most the context length of the model. A longer default is lowered to it."


class Spec(BaseModel):
    """Base class of all request models. They are immutable and reject unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def broken_rule(entry: Mapping[str, Any]) -> str:
    """Return the rule that a value breaks, from an entry of a ValidationError of pydantic."""
    text: str = entry["msg"]
    if entry["type"] in {"too_long", "too_short"} and isinstance(entry["input"], str):
        # If a text has a further check, pydantic reports its length in items instead of characters.
        text = re.sub(r"^Value(.*) items?\b", r"String\1 characters", text)
    return text.removeprefix("Value error, ").replace(" after validation", "").removesuffix(", not more")
