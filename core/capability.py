"""What a worker has and what a job needs: a worker claims only what it can do.

Needs are learnt and kept in the job's row: `disk`, bytes free where it found no room; `memory`, bytes on the device
where memory ran out; `device`, the kind on which its state was made, since another kind would not go on to the same
bits.
"""

from dataclasses import dataclass

from sqlalchemy import BigInteger, ColumnElement, and_, func

from core.specs import SPEC_VERSION
from core.tables import Job, Worker

CPU = "cpu"
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Capability:
    """What a worker has, named as the columns of its row."""

    device: str
    """Its kind: `cpu`, `cuda`."""
    device_name: str
    memory: int
    """Bytes on the device."""
    disk: int
    """Bytes free for the job's files."""
    spec_version: int = SPEC_VERSION
    """The newest requests that it understands."""


UNLIMITED = Capability(CPU, "", LARGEST, LARGEST)
"""Nothing is too large for it."""


def fits(has: Capability | type[Worker]) -> ColumnElement[bool]:
    """Whether a worker, or the one whose row the query looks at, can do the query's job."""
    return and_(
        Job.spec_version <= has.spec_version,
        func.coalesce(Job.needs["device"].astext, has.device) == has.device,
        func.coalesce(Job.needs["memory"].astext.cast(BigInteger), 0) <= has.memory,
        func.coalesce(Job.needs["disk"].astext.cast(BigInteger), 0) <= has.disk,
    )
