"""Claims of jobs by a worker that has enough of everything, and without limits. The row of a job."""

from collections.abc import Mapping

from sqlalchemy.orm import Session, sessionmaker

from core.capability import CPU, Capability
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.tables import Job

LARGEST = 2**63 - 1
"""Largest number of bytes that a row of a worker can hold."""
UNLIMITED = Capability(CPU, "", LARGEST, LARGEST)
"""Capability of a CPU worker with enough memory and disk space for every job."""


def claim(
    session: Session,
    worker: str,
    lease_seconds: float,
    capability: Capability = UNLIMITED,
    *,
    tenant_running: int = 0,
    key_running: int = 0,
    weights: Mapping[str, float] = {},
) -> Attempt | None:
    """Claim a job as `core.jobs.attempts.claim` does."""
    return attempts.claim(
        session,
        worker,
        lease_seconds,
        capability,
        tenant_running=tenant_running,
        key_running=key_running,
        weights=weights,
    )


def job_row(sessions: sessionmaker[Session], job_id: str) -> Job:
    """Return the row of a job as it is now."""
    with sessions.begin() as session:
        return session.get_one(Job, job_id)
