"""Responses about datasets."""

from dataclasses import asdict
from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from api.schemas.shared import FILE_ID, MODEL, SHA256, TIME, example
from core.datasets.previews import Preview
from core.tables import Dataset
from seft.data.records import Format
from seft.models.source import ModelSource


class DatasetView(BaseModel):
    """A valid dataset."""

    model_config = example(
        {
            "id": FILE_ID,
            "name": "support.jsonl",
            "format": "text",
            "bytes": 1048576,
            "records": 812,
            "skipped": 0,
            "sha256": SHA256,
            "created_at": TIME,
        }
    )

    id: str
    name: str
    format: Format = Field(description="Format of the records, detected from the first one.")
    bytes: int = Field(description="Size of the records as uncompressed JSONL.")
    records: int
    skipped: int = Field(description="Invalid lines that were skipped, as `invalid_sample_skip_percentage` allows.")
    sha256: str = Field(description="SHA-256 of the records as uncompressed JSONL.")
    created_at: datetime

    @classmethod
    def of(cls, row: Dataset) -> Self:
        """Return the view of a row."""
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class RecordPart(BaseModel):
    """A part of a record's text."""

    text: str
    trained: bool = Field(description="True if a repair learns to predict this part.")


class RecordView(BaseModel):
    """A record as the model's tokenizer reads it."""

    tokens: int
    trained_tokens: int = Field(description="Tokens that a repair learns to predict.")
    parts: list[RecordPart]
    cut: bool = Field(description="True if only the first 2000 tokens are shown.")


class PreviewView(BaseModel):
    """The first records of a dataset as a model would be trained on them, with token counts."""

    model_config = example(
        {
            "dataset": FILE_ID,
            "model": MODEL,
            "revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            "records": [
                {
                    "tokens": 14,
                    "trained_tokens": 5,
                    "parts": [
                        {"text": "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n", "trained": False},
                        {"text": "Noon.<|im_end|>\n", "trained": True},
                    ],
                    "cut": False,
                }
            ],
            "counted_records": 812,
            "tokens": 20345,
            "trained_tokens": 9120,
            "exact": True,
        }
    )

    dataset: str
    model: str
    revision: str | None
    records: list[RecordView]
    counted_records: int = Field(description="Records whose tokens were counted: those in the first 256 KiB.")
    tokens: int = Field(description="Tokens of the whole dataset, estimated from its size unless `exact`.")
    trained_tokens: int = Field(description="Those of them that a repair learns to predict.")
    exact: bool = Field(description="True if the tokens of all records were counted.")

    @classmethod
    def of(cls, row: Dataset, source: ModelSource, preview: Preview) -> Self:
        """Return the view of a preview."""
        names = {"dataset": row.id, "model": source.reference, "revision": source.revision}
        return cls.model_validate(names | asdict(preview) | {"exact": preview.counted_records == row.records})


class DatasetPage(BaseModel):
    """Datasets, newest first. For the next page, send the last id as `after`."""

    model_config = example({"data": [DatasetView.model_config["json_schema_extra"]["example"]], "has_more": False})  # type: ignore[index]

    data: list[DatasetView]
    has_more: bool
