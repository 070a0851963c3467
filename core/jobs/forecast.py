"""Estimate when waiting jobs will start.

The estimate assumes that running jobs keep their speed, and that a waiting job takes as long as recent jobs did on
average.
"""

import heapq
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import workers
from core.states import Status
from core.tables import Job

RECENT_JOBS = 50
"""Number of recent succeeded jobs, of all tenants, whose average duration is used."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until each live worker is free, and the expected seconds of a job.

    The expected seconds are None if no job has succeeded yet.
    """

    free_in: tuple[float, ...]
    duration: float | None

    @classmethod
    def now(cls, session: Session, sweep_seconds: float) -> "Forecast":
        """Compute the forecast from the current state of the queue and the workers."""
        seconds = func.extract("epoch", Job.finished_at - Job.started_at).label("seconds")
        recent = select(seconds).where(Job.status == Status.SUCCEEDED).order_by(Job.id.desc()).limit(RECENT_JOBS)
        mean = session.scalar(select(func.avg(recent.subquery().c.seconds)))
        duration = None if mean is None else float(mean)
        elapsed = select(func.extract("epoch", func.now() - Job.started_at), Job.progress)
        running = session.execute(elapsed.where(Job.status == Status.RUNNING)).all()
        remaining = [float(spent) * (1 / progress - 1) if progress else duration for spent, progress in running]
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
