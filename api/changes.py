"""Wake requests that wait for a change of a job. One task per process polls the database for all of them.

A request that waits is an asyncio task. It holds no thread and no database connection. So a thousand waits cost one
query per second.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import anyio
import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from core.states import Status
from core.tables import Job, JobEvent

POLL_SECONDS = 1.0
"""Seconds between two reads of the jobs that requests wait for."""
READERS = 4
"""Maximum number of threads in which requests that were woken read their job."""

log = structlog.get_logger(__name__)


class JobVersion(NamedTuple):
    """What changes if a job changes. Heartbeats do not change it."""

    updated_at: datetime
    ended: bool
    last_event: int


IsNew = Callable[[JobVersion], bool]


class JobChanges:
    """The jobs that requests of this process wait for. All its methods must be called in one event loop."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions
        self._waiters: dict[str, set[_Waiter]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._poller_thread = CapacityLimiter(1)
        self.readers = CapacityLimiter(READERS)
        """Limits the threads of requests that were woken, because a change can wake hundreds at the same moment."""

    async def wait(self, job_id: str, is_new: IsNew, seconds: float) -> None:
        """Wait until `is_new` is true for the job's version, or until the job is gone, but at most `seconds`.

        The caller reads the job first, and `is_new` compares with what it has read. So no change is missed.
        """
        waiter = _Waiter(is_new)
        self._waiters.setdefault(job_id, set()).add(waiter)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            with anyio.move_on_after(seconds):
                await waiter.woken.wait()
        finally:
            self._waiters[job_id].discard(waiter)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def _poll(self) -> None:
        """Read the versions of all jobs that requests wait for, again and again until no request waits."""
        while self._waiters:
            await asyncio.sleep(POLL_SECONDS)
            try:
                versions = await run_sync(self._read, list(self._waiters), limiter=self._poller_thread)
            except SQLAlchemyError as error:
                log.warning("changes.not_read", error=str(error))
                continue
            for job_id, version in versions.items():
                for waiter in self._waiters.get(job_id, ()):
                    if version is None or waiter.is_new(version):
                        waiter.woken.set()

    def _read(self, job_ids: Sequence[str]) -> dict[str, JobVersion | None]:
        """Return the version of each job, or None for a job that does not exist."""
        last_event = select(func.max(JobEvent.id)).where(JobEvent.job_id == Job.id).correlate(Job).scalar_subquery()
        query = select(Job.id, Job.updated_at, Job.status, func.coalesce(last_event, 0)).where(Job.id.in_(job_ids))
        with self._sessions.begin() as session:
            rows = session.execute(query).all()
        found = {job_id: JobVersion(at, Status(status).final, event) for job_id, at, status, event in rows}
        return {job_id: found.get(job_id) for job_id in job_ids}


class _Waiter:
    """A request that waits."""

    def __init__(self, is_new: IsNew) -> None:
        self.is_new = is_new
        self.woken = asyncio.Event()
