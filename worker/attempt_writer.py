"""Write to the database for one attempt: renew its lease, and write its reports and results.

While the database is unreachable, a write is retried until the lease expires. After that another worker may run the
job, so the write raises LeaseLostError. A write also raises it if another attempt has replaced this one or the job
has ended.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import Session, sessionmaker

from core.errors import LeaseLostError
from core.jobs import attempts
from core.jobs.attempts import Attempt, PendingActions
from core.settings import Settings
from worker.protocol import Measured, Progressed, Scored, TopologyEvolved

FLUSH_SECONDS = 1.0
RETRY_SECONDS = 0.5

log = structlog.get_logger(__name__)
T = TypeVar("T")


class AttemptWriter:
    """Writes the data of one attempt to the database. Use it from one thread only."""

    def __init__(self, sessions: sessionmaker[Session], attempt: Attempt, settings: Settings) -> None:
        self._sessions, self._attempt, self._settings = sessions, attempt, settings
        self._renewed = self._flushed = time.monotonic()
        self._events: list[Progressed | TopologyEvolved] = []
        """Reports that are not written yet, oldest first.

        Consecutive progress reports of a phase are replaced by the newest.
        """
        self.remaining: float | None = None
        """Seconds until the job ends, as last reported by the training process. None if unknown."""
        self._metrics: dict[int, dict[str, float]] = {}
        self._scores: dict[str, float] = {}
        self.requests = PendingActions(pausing=False, stop_step=attempt.stop_step)
        """Actions that the tenant has requested, as of the last heartbeat."""

    def add(self, report: Progressed | Measured | TopologyEvolved | Scored) -> None:
        """Store a report in memory until the next flush."""
        match report:
            case Progressed():
                self.remaining = report.remaining
                last = self._events[-1] if self._events else None
                if isinstance(last, Progressed) and last.phase == report.phase:
                    self._events.pop()
                self._events.append(report)
            case TopologyEvolved():
                self._events.append(report)
            case Measured():
                self._metrics[report.step] = report.values
            case Scored():
                self._scores |= report.scores

    def tick(self) -> None:
        """Renew the lease every `heartbeat_seconds`. Write reports `FLUSH_SECONDS` after the last write.

        Call this often.
        """
        now = time.monotonic()
        if now >= self._renewed + self._settings.heartbeat_seconds:
            self._renew()
        if now >= self._flushed + FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the stored reports to the database in one transaction."""
        events, metrics, scores = self._events, sorted(self._metrics.items()), self._scores
        self._events, self._metrics, self._scores = [], {}, {}

        def change(session: Session) -> None:
            attempts.add_metrics(session, self._attempt, metrics)
            if scores:
                attempts.add_scores(session, self._attempt, scores)
            for event in events:
                match event:
                    case Progressed():
                        attempts.set_progress(session, self._attempt, **event.model_dump(exclude={"type"}))
                    case TopologyEvolved(event=evolved):
                        attempts.record_evolution(session, self._attempt, asdict(evolved))

        if events or metrics or scores:
            self.write(change)
        self._flushed = time.monotonic()  # the end: a slow database must not make the next flush due at once

    def write(self, change: Callable[[Session], T]) -> T:
        """Run `change` in a transaction and return its result. If the database is unreachable, retry.

        Raises LeaseLostError if the lease expires meanwhile.
        """
        while True:
            try:
                with self._sessions.begin() as session:
                    return change(session)
            except (DBAPIError, NoConnectionError) as error:
                # Other errors can end the connection too, such as the timeout of an idle transaction.
                reachable = isinstance(error, DBAPIError) and not error.connection_invalidated
                if reachable and not isinstance(error, (OperationalError, InterfaceError)):
                    raise
                log.warning("database.retried" if reachable else "database.unreachable", error=str(error))
                if time.monotonic() > self._renewed + self._settings.lease_seconds:
                    raise LeaseLostError("the database was unreachable for longer than the lease") from error
            time.sleep(RETRY_SECONDS)

    def _renew(self) -> None:
        started = 0.0

        def change(session: Session) -> None:
            nonlocal started
            started = time.monotonic()
            self.requests = attempts.heartbeat(
                session, self._attempt, self._settings.lease_seconds, started - self._renewed
            )

        self.write(change)
        self._renewed = started
