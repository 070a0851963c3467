"""Events, metrics and checkpoints of a job, as the API returns them."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from api.schemas.shared import SHA256, TIME, example
from core.jobs.reports import MetricPoint
from core.tables import Checkpoint, JobEvent, JobMetric


class EventView(BaseModel):
    """Something that happened to a job."""

    id: int
    type: str = Field(description="`job.<move>` for a change of its status, another word for anything else.")
    attempt: int
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, event: JobEvent) -> Self:
        """The view of a row."""
        return cls(id=event.id, type=event.type, attempt=event.attempt, data=event.data, created_at=event.created_at)


class EventPage(BaseModel):
    """Events, oldest first. The next page is `after` the last one's id."""

    model_config = example(
        {
            "data": [{"id": 7, "type": "job.claimed", "attempt": 1, "data": {"worker": "gpu-1"}, "created_at": TIME}],
            "has_more": False,
        }
    )

    data: list[EventView]
    has_more: bool


class MetricView(BaseModel):
    """What was measured at one step."""

    step: int
    attempt: int
    values: dict[str, float]

    @classmethod
    def of(cls, row: JobMetric | MetricPoint) -> Self:
        """The view of a row."""
        return cls(step=row.step, attempt=row.attempt, values=row.values)


class MetricPage(BaseModel):
    """Metrics by step. The next page is `after_step` the last one's."""

    model_config = example(
        {"data": [{"step": 1, "attempt": 1, "values": {"loss": 3.91, "learning_rate": 0.003}}], "has_more": True}
    )

    data: list[MetricView]
    has_more: bool


class FileView(BaseModel):
    """A file of a checkpoint, and where to get it."""

    name: str
    size: int
    sha256: str
    url: str = Field(description="Presigned: whoever has it may GET the file for a while.")


class CheckpointView(BaseModel):
    """A published checkpoint."""

    id: str
    step: int
    sha256: str = Field(description="Of `manifest.json`, which holds that of every other file.")
    scores: dict[str, float]
    files: list[FileView]
    created_at: datetime
    expires_at: datetime | None = Field(description="When it is deleted; `null`: never.")

    @classmethod
    def of(cls, row: Checkpoint, files: list[FileView]) -> Self:
        """The view of a row, with links."""
        names = cls.model_fields.keys() - {"files"}
        return cls.model_validate({name: getattr(row, name) for name in names} | {"files": files})


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
                    "files": [
                        {
                            "name": "model.safetensors",
                            "size": 269060552,
                            "sha256": SHA256,
                            "url": "https://s3.example/seft/jobs/…?X-Amz-Signature=…",
                        }
                    ],
                    "created_at": TIME,
                    "expires_at": "2026-03-02T12:00:00Z",
                }
            ]
        }
    )

    data: list[CheckpointView]
