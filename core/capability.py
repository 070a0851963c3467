"""Match workers and jobs: a worker claims only jobs whose needs it meets.

Needs are found out while a job runs and stored in its row: `disk`, free bytes after it ran out of disk space; `memory`,
bytes on the device after it ran out of memory; `device`, the kind that saved its state, because another kind would not
give the same bits.
"""

from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, and_, func

from core.specs import SPEC_VERSION
from core.tables import Job, Worker

CPU = "cpu"
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Capability:
    """What a worker offers. The fields have the names of its columns."""

    device: str
    """Kind of device: `cpu`, `cuda`."""
    device_name: str
    memory: int
    """Bytes on the device."""
    disk: int
    """Bytes free for the job's files."""
    spec_version: int = SPEC_VERSION
    """Newest version of requests that it can run."""


UNLIMITED = Capability(CPU, "", LARGEST, LARGEST)
"""A CPU worker that no need for memory or disk space exceeds."""


def can_run(worker: Capability | type[Worker]) -> ColumnElement[bool]:
    """Return the condition that a worker, or the query's row of `Worker`, can run the query's job."""
    return and_(
        Job.spec_version <= worker.spec_version,
        func.coalesce(Job.needs["device"].astext, worker.device) == worker.device,
        func.coalesce(Job.needs["memory"].astext.cast(BigInteger), 0) <= worker.memory,
        func.coalesce(Job.needs["disk"].astext.cast(BigInteger), 0) <= worker.disk,
    )
