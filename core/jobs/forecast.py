"""Estimate when running jobs will end and when waiting jobs will start.

The worker of a running job reports when the job will end (`worker.progress`). A waiting job, and a running job without
such a report, is assumed to run as long as recent jobs did on average.
"""

import heapq
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import workers
from core.states import Status
from core.tables import Job

RECENT_JOBS = 50
"""Number of recent succeeded jobs, of all tenants, whose average run time is used."""


def finish(job: Job) -> datetime | None:
    """Return the time at which a running job will end. It is never in the past.

    Returns None if the time is unknown, for example because the job takes longer than estimated. Also returns None if
    the job does not run or if a pause was requested, because then it will not end at that time.
    """
    at = job.estimated_finish
    if job.status != Status.RUNNING or job.pausing or at is None:
        return None
    return at if at > datetime.now(UTC) else None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until the live workers are free, ascending, and the expected seconds of a job.

    Workers for which this time is unknown are left out. The expected seconds are None if no job has succeeded yet.
    """

    free_in: tuple[float, ...]
    duration: float | None

    @classmethod
    def now(cls, session: Session, sweep_seconds: float) -> "Forecast":
        """Compute the forecast from the current state of the queue and the workers."""
        elapsed = func.extract("epoch", Job.finished_at - Job.started_at)
        seconds = func.coalesce(func.nullif(Job.run_seconds, 0), elapsed).label("seconds")
        recent = select(seconds).where(Job.status == Status.SUCCEEDED).order_by(Job.id.desc()).limit(RECENT_JOBS)
        mean = session.scalar(select(func.avg(recent.subquery().c.seconds)))
        duration = None if mean is None else float(mean)
        left = func.extract("epoch", Job.estimated_finish - func.now())
        rows = session.execute(select(Job.run_seconds, left).where(Job.status == Status.RUNNING)).all()
        remaining = [_seconds_left(float(ran), left, duration) for ran, left in rows]
        known = sorted(seconds for seconds in remaining if seconds is not None)
        idle = workers.count(session, sweep_seconds) - len(remaining)
        return cls((*[0.0] * idle, *known), duration)

    def start(self, position: int) -> float | None:
        """Return the seconds until the job at this place in the queue starts. Returns None if there is no estimate.

        The first place is 1.
        """
        if not self.free_in or (position > len(self.free_in) and self.duration is None):
            return None
        free_in = list(self.free_in)
        heapq.heapify(free_in)
        for _ in range(position - 1):
            soonest = heapq.heappop(free_in)
            if self.duration is not None:
                heapq.heappush(free_in, soonest + self.duration)
        return free_in[0]


def _seconds_left(ran: float, left: float | None, duration: float | None) -> float | None:
    """Return the seconds until a running job ends, or None if they are unknown.

    `left` are those that its worker has reported. Without them, the job is assumed to run for `duration` seconds. It
    has run for `ran` seconds.
    """
    if left is not None:
        return max(0.0, float(left))
    return None if duration is None else max(0.0, duration - ran)
