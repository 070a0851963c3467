"""Workers, as the API returns them."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from api.schemas.shared import JOB_ID, TIME, example
from core.tables import Job, Worker


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
