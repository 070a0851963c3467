"""Requests and responses about imports of datasets."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, Strict, model_validator

from api.errors import FlawView
from api.schemas.shared import FILE_ID, SHA256, TIME, RowView, example
from core.datasets import imports
from core.errors import Code
from core.infra.storage import part_bytes
from core.request_fields import WHOLE, Number, Spec, StorableText
from core.states import ImportState
from core.tables import Import

LARGEST = 5 << 40
"""Size of the largest object that S3 can store, in bytes."""
IMPORT_ID = "imp_01jz5h4c8m2v9q7w3t6x0y1b2d"


class ImportRequest(Spec):
    """A dataset to import: `bytes` of a file that you send in parts, or a `source` that the service fetches."""

    model_config = example({"name": "support.jsonl.gz", "bytes": 24, "resume_key": SHA256})

    name: Annotated[StorableText, Field(max_length=255)] | None = Field(
        default=None, description="Name of the dataset. The default is the file name of the source."
    )
    bytes: Annotated[int, Strict(), Field(ge=1, le=LARGEST), WHOLE] | None = Field(
        default=None, description="Size of the file that you send."
    )
    resume_key: Annotated[StorableText, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Text that identifies the file, such as its SHA-256. Send it again to resume an unfinished import.",
    )
    source: Annotated[StorableText, Field(max_length=1024)] | None = Field(
        default=None,
        description="`s3://bucket/key`, or `hf://datasets/owner/name[@revision][/file]`.",
    )
    invalid_sample_skip_percentage: Number = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Largest percentage of invalid lines that are skipped. A file with more is rejected.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.bytes is None) == (self.source is None):
            raise ValueError(
                "Give exactly one: `bytes`, the size of the file that you will send in parts, or `source`."
                f" The request has {'neither' if self.bytes is None else 'both'}."
            )
        if self.source is not None and self.resume_key is not None:
            raise ValueError("Leave out `resume_key`: only a file that you send in parts can be resumed.")
        return self


class ImportFailure(BaseModel):
    """Reason why an import failed. It has the `code` and `errors` of an error response. `message` is its `detail`."""

    code: Code
    message: str
    errors: list[FlawView]


_IMPORT = {
    "id": IMPORT_ID,
    "name": "support.jsonl.gz",
    "status": "done",
    "source": None,
    "bytes": 24,
    "part_bytes": 16777216,
    "parts": 1,
    "dataset_id": FILE_ID,
    "error": None,
    "created_at": TIME,
}


class ImportView(RowView):
    """An import of a dataset."""

    model_config = example(_IMPORT)

    id: str
    name: str
    status: ImportState = Field(
        description="`receiving`: parts are sent. `checking`: the file is fetched or checked. Then `done` or `failed`."
    )
    source: str | None
    bytes: int | None
    part_bytes: int | None = Field(description="Bytes of every part except the last one, which may be smaller.")
    parts: int | None = Field(description="Number of parts.")
    dataset_id: str | None = Field(description="Id of the dataset that the import created.")
    error: ImportFailure | None
    created_at: datetime

    @classmethod
    def of(cls, row: Import, **computed: Any) -> Self:
        """Return the view of a row."""
        size = row.bytes
        length, count = (None, None) if size is None else (part_bytes(size), imports.part_count(size))
        return super().of(row, status=row.state, part_bytes=length, parts=count, **computed)


class ImportPage(BaseModel):
    """Imports, newest first. For the next page, send the last id as `after`."""

    model_config = example({"data": [_IMPORT], "has_more": False})

    data: list[ImportView]
    has_more: bool


class ImportPart(BaseModel):
    """A part of a file that is sent in parts."""

    number: int
    bytes: int
    received: bool
    url: str | None = Field(
        description="Presigned link to PUT these bytes to. `null` if the part was received, or if your key has the"
        " scope `read`."
    )


class PartPage(BaseModel):
    """Parts in the order of the file. For the next page, send the last number as `after`."""

    model_config = example(
        {
            "data": [
                {"number": 1, "bytes": 24, "received": False, "url": "https://storage.example.com/seft/imports/imp_…"}
            ],
            "has_more": False,
        }
    )

    data: list[ImportPart]
    has_more: bool
