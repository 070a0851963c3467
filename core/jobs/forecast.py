"""When waiting jobs may start: if running ones go on as they did, and those before them last as jobs did of late."""

import heapq
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import workers
from core.states import Status
from core.tables import Job

LATELY = 50
"""Jobs of any tenant that tell how long one lasts."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until each living worker is free, and how long a job lasts; None where nothing tells."""

    free: tuple[float, ...]
    lasts: float | None

    @classmethod
    def now(cls, session: Session, sweep_seconds: float) -> "Forecast":
        """As things stand."""
        lasting = func.extract("epoch", Job.finished_at - Job.started_at).label("seconds")
        ended = select(lasting).where(Job.status == Status.SUCCEEDED).order_by(Job.id.desc()).limit(LATELY).subquery()
        mean = session.scalar(select(func.avg(ended.c.seconds)))
        lasts = None if mean is None else float(mean)
        going = select(func.extract("epoch", func.now() - Job.started_at), Job.progress)
        running = session.execute(going.where(Job.status == Status.RUNNING)).all()
        left = [float(spent) * (1 / done - 1) if done else lasts for spent, done in running]
        known = sorted(seconds for seconds in left if seconds is not None)
        idle = workers.count(session, sweep_seconds) - len(left)
        return cls((*[0.0] * idle, *known), lasts)

    def start(self, position: int) -> float | None:
        """Seconds until the job at this place of the queue, from 1, is taken; None where nothing tells."""
        if not self.free or (position > len(self.free) and self.lasts is None):
            return None
        free = list(self.free)
        heapq.heapify(free)
        for _ in range(position - 1):
            soonest = heapq.heappop(free)
            if self.lasts is not None:
                heapq.heappush(free, soonest + self.lasts)
        return free[0]
