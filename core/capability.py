"""Match workers and jobs: a worker claims only jobs whose needs it meets.

The needs of a job become known while it runs, and are stored in its row. `disk`: free bytes that it needs, set after
it ran out of disk space. `memory`: bytes that it needs on the device, set after it ran out of memory. `device`: the
kind of device that saved its state, because on another kind the result would differ in some bits.
"""

from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, and_, func

from core.specs import SPEC_VERSION
from core.tables import Job, Worker

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Capability:
    """What a worker offers to jobs. The fields have the names of the columns in the table of workers."""

    device: str
    """Kind of device: `cpu` or `cuda`."""
    device_name: str
    memory: int
    """Bytes of memory on the device."""
    disk: int
    """Bytes of free disk space for the job's files."""
    devices: int = 1
    """Number of devices. All are of the same kind and size."""
    bfloat16: bool = False
    """Whether the device has instructions for bfloat16. Jobs with the dtype `auto` then run in bfloat16."""
    spec_version: int = SPEC_VERSION
    """Newest version of job requests that the worker can run."""


def can_run(worker: Capability | type[Worker]) -> ColumnElement[bool]:
    """Return an SQL condition that is true if the worker can run the job in the row of the query.

    `worker` is the capability of a worker. If it is the table `Worker`, the worker is in the row of the query too.
    """
    return and_(
        Job.spec_version <= worker.spec_version,
        func.coalesce(Job.spec["devices"].as_integer(), 1) <= worker.devices,
        func.coalesce(Job.needs["device"].astext, worker.device) == worker.device,
        func.coalesce(Job.needs["memory"].astext.cast(BigInteger), 0) <= worker.memory,
        func.coalesce(Job.needs["disk"].astext.cast(BigInteger), 0) <= worker.disk,
    )
