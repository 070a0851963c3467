"""What the API answers with. Shaped from rows, so that a table may change without its readers noticing."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from api.schemas.estimates import EstimateView
from core.jobs.reports import Thinned
from core.specs import JobSpec, shown
from core.states import Phase, Status
from core.tables import Checkpoint, Job, JobEvent, JobMetric, Worker

JOB_ID = "job_01jz5h4c8m2v9q7w3t6x0y1b2d"
FILE_ID = "file_01jz5h4c8m2v9q7w3t6x0y1b2d"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
TIME = "2026-01-31T12:00:00Z"
LARGEST_ID = 2**63 - 1
"""Of a row that the database numbers."""


def example(value: dict[str, Any]) -> ConfigDict:
    """A model's configuration that gives OpenAPI an example."""
    return ConfigDict(json_schema_extra={"example": value})


@dataclass(frozen=True, slots=True)
class Told:
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


class ErrorView(BaseModel):
    """Why a job failed."""

    fault: Annotated[str, Told(Literal["user_error", "system_error"])] = Field(
        description="Whose fault it is: the request's or the service's."
    )
    code: str
    message: str


class ReasonView(BaseModel):
    """Why a job does not run."""

    code: str
    message: str


class JobView(BaseModel):
    """A job, as a list shows it."""

    id: str
    status: Status
    reason: ReasonView | None = Field(
        description="Why it does not run: while paused, and in the answer about one job while queued."
    )
    pausing: bool = Field(description="A pause was asked for; the worker is saving the state.")
    stopping: bool = Field(description="It was told to train no further; what there is gets published.")
    phase: Annotated[str | None, Told(Phase | None)] = Field(description="What the running attempt is doing.")
    progress: float = Field(description="Share of the whole job that is done, 0 to 1.")
    step: int = Field(description="Optimizer steps done, of `spec.repair.steps`.")
    attempt: int = Field(description="Number of the newest attempt; 0 before the first one.")
    scores: dict[str, float] = Field(description="Perplexities `dense`, `pruned`, `repaired`, each once it is known.")
    measured: dict[str, Any] | None = Field(description="Sparsity counted from the written file.")
    error: ErrorView | None
    spec: Annotated[dict[str, Any], Told(JobSpec)] = Field(description="The request with all defaults.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime

    @classmethod
    def of(cls, job: Job, **more: Any) -> Self:
        """The view of a row, and what the row does not know."""
        names = set(JobView.model_fields)
        return cls.model_validate({name: getattr(job, name) for name in names} | {"spec": shown(job.spec)} | more)


_JOB = {
    "id": JOB_ID,
    "status": "running",
    "reason": None,
    "pausing": False,
    "stopping": False,
    "phase": "training",
    "progress": 0.42,
    "step": 180,
    "attempt": 1,
    "scores": {"dense": 20.63, "pruned": 51.2},
    "measured": None,
    "error": None,
    "spec": JobSpec(model=MODEL, dataset=FILE_ID, sparsity=0.6).model_dump(mode="json"),
    "created_at": TIME,
    "started_at": TIME,
    "finished_at": None,
    "updated_at": TIME,
}


class JobDetail(JobView):
    """A job, as its own page shows it."""

    model_config = example({**_JOB, "queue_position": None, "estimate": None})

    queue_position: int | None = Field(description="Place in the queue from 1 while queued; 1000 is that or more.")
    estimate: Annotated[dict[str, Any] | None, Told(EstimateView | None)] = Field(
        description="Of a job with `auto_start: false`: what it was expected to take when it was made."
    )


class JobPage(BaseModel):
    """Jobs, newest first. The next page is `after` the last one's id."""

    model_config = example({"data": [_JOB], "has_more": False})

    data: list[JobView]
    has_more: bool


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
    def of(cls, row: JobMetric | Thinned) -> Self:
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


class WorkerView(BaseModel):
    """A worker."""

    name: str
    host: str
    device: str = Field(description="Its kind, `cpu` or `cuda`.")
    device_name: str
    memory: int = Field(description="Bytes on the device.")
    disk: int = Field(description="Bytes free for a job's files when it was last seen.")
    temperature: int | None = Field(description="Degrees Celsius of the device then, where NVML tells.")
    versions: dict[str, str]
    busy: bool
    job_id: str | None = Field(description="The job that it runs, where that is one of yours.")
    started_at: datetime
    seen_at: datetime = Field(description="Its last sign of life.")
    consumed_at: datetime = Field(description="When it last took a message from the broker.")

    @classmethod
    def of(cls, worker: Worker, job: Job | None, tenant: str) -> Self:
        """The view of a row, and of the job that it runs."""
        mine = job.id if job and job.tenant == tenant else None
        more = {"busy": job is not None, "job_id": mine}
        names = cls.model_fields.keys() - more
        return cls.model_validate({name: getattr(worker, name) for name in names} | more)


class WorkerList(BaseModel):
    """All workers that were seen within a day."""

    model_config = example(
        {
            "data": [
                {
                    "name": "gpu-1:4242:9f86d081",
                    "host": "gpu-1",
                    "device": "cuda",
                    "device_name": "NVIDIA H100 80GB HBM3",
                    "memory": 85017493504,
                    "disk": 512110190592,
                    "temperature": 61,
                    "versions": {"seft": "0.1.0", "torch": "2.13.0"},
                    "busy": True,
                    "job_id": JOB_ID,
                    "started_at": TIME,
                    "seen_at": TIME,
                    "consumed_at": TIME,
                }
            ]
        }
    )

    data: list[WorkerView]


class Alive(BaseModel):
    """The process answers."""

    model_config = example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether the service can do its work, and what each server that it needs says."""

    model_config = example({"status": "ready", "checks": {"database": "ok", "storage": "ok", "broker": "ok"}})

    status: Literal["ready", "degraded"] = Field(
        description="`degraded` while the broker is down: running jobs go on, and new ones start when it is back."
    )
    checks: dict[str, str]


class Version(BaseModel):
    """What runs here."""

    model_config = example({"version": "0.1.0"})

    version: str
