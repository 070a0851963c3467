"""Responses about events, metrics and checkpoints of a job."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from api.schemas.shared import FILE, SHA256, TIME, FileView, RowView, example
from seft.config import OutputFormat


class EventView(RowView):
    """An event of a job."""

    id: int
    type: str = Field(description="Type of the event. Changes of the status have types `job.<transition>`.")
    attempt: int
    data: dict[str, Any]
    created_at: datetime


class EventPage(BaseModel):
    """Events, oldest first. For the next page, send the last id as `after`."""

    model_config = example(
        {
            "data": [{"id": 7, "type": "job.claimed", "attempt": 1, "data": {"worker": "gpu-1"}, "created_at": TIME}],
            "has_more": False,
        }
    )

    data: list[EventView]
    has_more: bool


class MetricView(RowView):
    """Values measured at one step."""

    step: int
    attempt: int
    values: dict[str, float]


class MetricPage(BaseModel):
    """Metrics in the order of steps. For the next page, send the last step as `after_step`."""

    model_config = example(
        {"data": [{"step": 1, "attempt": 1, "values": {"loss": 3.91, "learning_rate": 0.003}}], "has_more": True}
    )

    data: list[MetricView]
    has_more: bool


CHECKPOINT_FILE = {**FILE, "format": "dense"}


class CheckpointFileView(FileView):
    """A file of a checkpoint."""

    model_config = example(CHECKPOINT_FILE)

    format: OutputFormat | None = Field(
        description="Format of the model that the file belongs to, one of `output.formats`. `null` if the file belongs"
        " to all formats."
    )


class CheckpointView(RowView):
    """A published checkpoint."""

    id: str
    step: int
    sha256: str = Field(description="SHA-256 of `manifest.json`. That file lists the SHA-256 of every other file.")
    scores: dict[str, float]
    files: list[CheckpointFileView]
    created_at: datetime
    expires_at: datetime | None = Field(description="Time at which the checkpoint is deleted. `null` means never.")


class CheckpointList(BaseModel):
    """All checkpoints of a job, oldest first."""

    model_config = example(
        {
            "data": [
                {
                    "id": "ckpt_01jz5h4c8m2v9q7w3t6x0y1b2d",
                    "step": 500,
                    "sha256": SHA256,
                    "scores": {"dense": 20.63, "pruned": 51.2, "repaired": 31.4},
                    "files": [CHECKPOINT_FILE],
                    "created_at": TIME,
                    "expires_at": "2026-03-02T12:00:00Z",
                }
            ]
        }
    )

    data: list[CheckpointView]
