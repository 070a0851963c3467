"""Parts that several schemas share: example values, files, and a type for stored values that are returned unchanged."""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from core.infra.storage import Storage

JOB_ID = "job_01jz5h4c8m2v9q7w3t6x0y1b2d"
FILE_ID = "file_01jz5h4c8m2v9q7w3t6x0y1b2d"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
TIME = "2026-01-31T12:00:00Z"
LARGEST_ID = 2**63 - 1
"""Largest id of a row with a numeric id in the database."""
LARGEST_STEP = 2**31 - 1
"""Largest step number that the database can store."""


def example(value: dict[str, Any]) -> ConfigDict:
    """Return a model configuration with an example for OpenAPI."""
    return ConfigDict(json_schema_extra={"example": value})


class RowView(BaseModel):
    """A view of a row. Each field has the value of the attribute of the row with the same name."""

    @classmethod
    def of(cls, row: Any, **computed: Any) -> Self:
        """Return the view of a row. `computed` are the values of fields that are not attributes of the row."""
        names = cls.model_fields.keys() - computed.keys()
        return cls.model_validate({name: getattr(row, name) for name in names} | computed)


FILE = {
    "name": "model.safetensors",
    "size": 269060552,
    "sha256": SHA256,
    "url": "https://s3.example/seft/jobs/…?X-Amz-Signature=…",
    "head_url": "https://s3.example/seft/jobs/…?X-Amz-Signature=…",
}


class FileView(BaseModel):
    """A stored file, with links to it that need no API key."""

    model_config = example(FILE)

    name: str
    size: int
    sha256: str
    url: str = Field(description="Presigned link to GET the file. It expires.")
    head_url: str = Field(
        description="Presigned link to get the headers of the file by HEAD, because `url` answers only GET. It expires."
    )

    @classmethod
    def of(
        cls,
        storage: Storage,
        key: str,
        *,
        name: str,
        size: int,
        sha256: str,
        saved_as: str | None = None,
        **further: Any,
    ) -> Self:
        """Return the view of the object with this key. With `saved_as`, a browser saves it under that name.

        `further` are the values of the fields that a derived view adds.
        """
        links = {"url": storage.link(key, saved_as=saved_as), "head_url": storage.head_link(key)}
        return cls(name=name, size=size, sha256=sha256, **links, **further)


@dataclass(frozen=True, slots=True)
class Passthrough:
    """Annotation for a field that returns a stored value without validation. OpenAPI describes the field as `type`.

    The value is not validated, because a newer version of the software may have stored it.
    """

    type: Any

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that accepts and returns any value."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, _: value,
            handler.generate_schema(self.type),
            serialization=core_schema.simple_ser_schema("any"),
        )
