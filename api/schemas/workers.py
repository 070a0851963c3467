"""Responses about workers."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from api.schemas.shared import JOB_ID, TIME, example
from core.tables import Job, Worker


class WorkerView(BaseModel):
    """A worker."""

    name: str
    host: str
    device: str = Field(description="Kind of device: `cpu` or `cuda`.")
    device_name: str
    devices: int = Field(description="Number of devices of the worker, all of this kind and size.")
    memory: int = Field(description="Memory of a device in bytes.")
    disk: int = Field(description="Free disk space for files of jobs, in bytes, at the last heartbeat.")
    bfloat16: bool = Field(
        description="Whether the device has instructions for bfloat16. Jobs with the dtype `auto` then run in bfloat16."
    )
    temperature: int | None = Field(
        description="Temperature of the hottest device in degrees Celsius at the last heartbeat. `null` without NVML."
    )
    versions: dict[str, str]
    alive: bool = Field(
        description="False if the worker has sent no heartbeat for six sweeps. A job that it ran returns to the queue."
    )
    busy: bool = Field(description="True if the worker runs a job.")
    job_id: str | None = Field(
        description="Id of the job that the worker runs. `null` if it runs none or the job is not yours."
    )
    started_at: datetime
    seen_at: datetime = Field(description="Time of the last heartbeat.")
    consumed_at: datetime = Field(description="Time when the worker last received a message from the broker.")

    @classmethod
    def of(cls, worker: Worker, alive: bool, job: Job | None, tenant: str) -> Self:
        """Return the view of a row. The job is shown only to its own tenant."""
        job_id = job.id if job and job.tenant == tenant else None
        computed = {"alive": alive, "busy": job is not None, "job_id": job_id}
        names = cls.model_fields.keys() - computed
        return cls.model_validate({name: getattr(worker, name) for name in names} | computed)


class WorkerList(BaseModel):
    """All workers that sent a heartbeat within the last day."""

    model_config = example(
        {
            "data": [
                {
                    "name": "gpu-1:4242:9f86d081",
                    "host": "gpu-1",
                    "device": "cuda",
                    "device_name": "NVIDIA H100 80GB HBM3",
                    "devices": 1,
                    "memory": 85017493504,
                    "disk": 512110190592,
                    "bfloat16": True,
                    "temperature": 61,
                    "versions": {"seft": "0.1.0", "torch": "2.13.0"},
                    "alive": True,
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
