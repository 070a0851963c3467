"""Responses about datasets."""

from dataclasses import asdict
from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from api.schemas.shared import FILE_ID, MODEL, SHA256, TIME, RowView, example
from core.datasets.previews import Preview
from core.tables import Dataset
from seft.data.records import Format
from seft.models.source import ModelSource


class DatasetView(RowView):
    """A dataset that was checked and stored."""

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
    skipped: int = Field(
        description="Number of invalid lines that were skipped. `invalid_sample_skip_percentage` limits it."
    )
    sha256: str = Field(description="SHA-256 of the records as uncompressed JSONL.")
    created_at: datetime


class RecordPart(BaseModel):
    """A part of a record's text."""

    text: str
    trained: bool = Field(description="True if a repair learns to predict this part.")


class RecordView(BaseModel):
    """A record as training input of a model, in parts."""

    tokens: int
    trained_tokens: int = Field(description="Number of tokens of this record that a repair learns to predict.")
    parts: list[RecordPart]
    cut: bool = Field(description="True if only the first 2000 tokens or 50,000 characters are shown.")


class PreviewView(BaseModel):
    """The first records of a dataset as training input of a model, with token counts."""

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
    counted_records: int = Field(
        description="Number of records whose tokens were counted: those in the first 256 KiB of the dataset."
    )
    tokens: int = Field(
        description="Number of tokens of the whole dataset. Estimated from its size unless `exact` is true."
    )
    trained_tokens: int = Field(description="Number of these tokens that a repair learns to predict.")
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
