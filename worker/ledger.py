"""An attempt's writes to the database: the lease, what was reported, what was decided. A heartbeat brings back wishes.

A database that is away is waited for, but no longer than the lease that was last renewed: after that the job may be
another worker's, and LeaseLostError says so. The same error comes when the database says so itself.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import Session, sessionmaker

from core.errors import LeaseLostError
from core.jobs import attempts
from core.jobs.attempts import Attempt, PendingActions
from core.settings import Settings
from worker.protocol import Measured, Progressed, Scored, TopologyEvolved

FLUSH_SECONDS = 1.0
PAUSE_SECONDS = 0.5

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Ledger:
    """Writes for one attempt, from one thread."""

    def __init__(self, sessions: sessionmaker[Session], attempt: Attempt, settings: Settings) -> None:
        self._sessions, self._attempt, self._settings = sessions, attempt, settings
        self._renewed = self._flushed = time.monotonic()
        self._course: list[Progressed | TopologyEvolved] = []
        """What makes events, in its order; of reports of progress that follow one another in a phase, the newest."""
        self._rows: dict[int, dict[str, float]] = {}
        self._scores: dict[str, float] = {}
        self.wishes = PendingActions(pausing=False, stop_step=attempt.stop_step)
        """As of the newest heartbeat."""

    def note(self, report: Progressed | Measured | TopologyEvolved | Scored) -> None:
        """Keep a report for the next flush."""
        match report:
            case Progressed():
                former = self._course[-1] if self._course else None
                if isinstance(former, Progressed) and former.phase == report.phase:
                    self._course.pop()
                self._course.append(report)
            case TopologyEvolved():
                self._course.append(report)
            case Measured():
                self._rows[report.step] = report.values
            case Scored():
                self._scores |= report.scores

    def tick(self) -> None:
        """Renew the lease and write what was noted, each when it is due. Call it often."""
        now = time.monotonic()
        if now >= self._renewed + self._settings.heartbeat_seconds:
            self._renew()
        if now >= self._flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was noted, in one transaction."""
        course, rows, scores = self._course, sorted(self._rows.items()), self._scores
        self._course, self._rows, self._scores = [], {}, {}
        self._flushed = time.monotonic()

        def change(session: Session) -> None:
            attempts.add_metrics(session, self._attempt, rows)
            if scores:
                attempts.add_scores(session, self._attempt, scores)
            for each in course:
                match each:
                    case Progressed():
                        attempts.set_progress(
                            session, self._attempt, phase=each.phase, progress=each.progress, step=each.step
                        )
                    case TopologyEvolved():
                        attempts.record_evolution(session, self._attempt, each.model_dump(exclude={"type"}))

        if course or rows or scores:
            self.write(change)

    def write(self, change: Callable[[Session], T]) -> T:
        """One transaction, tried until it holds or the lease has run out."""
        while True:
            try:
                with self._sessions.begin() as session:
                    return change(session)
            except (OperationalError, InterfaceError, NoConnectionError) as error:
                log.warning("database.away", error=str(error))
                if time.monotonic() > self._renewed + self._settings.lease_seconds:
                    raise LeaseLostError("the database was away for longer than the lease") from error
            time.sleep(PAUSE_SECONDS)

    def _renew(self) -> None:
        asked = 0.0

        def change(session: Session) -> None:
            nonlocal asked
            asked = time.monotonic()
            self.wishes = attempts.heartbeat(session, self._attempt, self._settings.lease_seconds)

        self.write(change)
        self._renewed = asked
