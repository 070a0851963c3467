"""Answers about datasets."""

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
    """A dataset that was uploaded and found right."""

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
    format: Format = Field(description="What its records are; the first of them decides it.")
    bytes: int = Field(description="Of the records as plain JSONL.")
    records: int
    skipped: int = Field(description="Broken lines that were left out, as `invalid_sample_skip_percentage` allowed.")
    sha256: str = Field(description="Of the records as plain JSONL; of a plain file that is right, its own.")
    created_at: datetime

    @classmethod
    def of(cls, row: Dataset) -> Self:
        """The view of a row."""
        return cls.model_validate({name: getattr(row, name) for name in cls.model_fields})


class PartView(BaseModel):
    """Text of a record."""

    text: str
    trained: bool


class RecordView(BaseModel):
    """A record as a model's tokenizer reads it."""

    tokens: int
    trained_tokens: int = Field(description="Those that a repair learns to predict.")
    parts: list[PartView]
    cut: bool = Field(description="Whether only its first 2000 tokens are shown.")


class PreviewView(BaseModel):
    """The first records of a dataset as a model would be trained on them."""

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
    tokens: int = Field(description="Of the whole dataset: an estimate by its bytes unless `exact`.")
    trained_tokens: int
    exact: bool = Field(description="Whether the tokens of all records were counted.")

    @classmethod
    def of(cls, row: Dataset, source: ModelSource, found: Preview) -> Self:
        """The view of a preview."""
        about = {"dataset": row.id, "model": source.reference, "revision": source.revision}
        return cls.model_validate(about | asdict(found) | {"exact": found.counted_records == row.records})


class DatasetPage(BaseModel):
    """Datasets, newest first. The next page is `after` the last one's id."""

    model_config = example({"data": [DatasetView.model_config["json_schema_extra"]["example"]], "has_more": False})  # type: ignore[index]

    data: list[DatasetView]
    has_more: bool
