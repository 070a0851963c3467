"""What several schemas share: values for examples, and fields that pass a stored value through."""

from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

JOB_ID = "job_01jz5h4c8m2v9q7w3t6x0y1b2d"
FILE_ID = "file_01jz5h4c8m2v9q7w3t6x0y1b2d"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
TIME = "2026-01-31T12:00:00Z"
LARGEST_ID = 2**63 - 1
"""Largest id of a row that the database numbers."""
LARGEST_STEP = 2**31 - 1
"""Largest step that the database stores."""


def example(value: dict[str, Any]) -> ConfigDict:
    """A model's configuration that gives OpenAPI an example."""
    return ConfigDict(json_schema_extra={"example": value})


@dataclass(frozen=True, slots=True)
class Passthrough:
    """A field that the OpenAPI describes as this type and that is answered as its row has it.

    Newer software than this may have written the row.
    """

    type: Any

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """One that takes and gives whatever is there."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, _: value,
            handler.generate_schema(self.type),
            serialization=core_schema.simple_ser_schema("any"),
        )
