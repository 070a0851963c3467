"""What a worker does when a hint comes: claim a job, do it. A hint may be lost, doubled or about nothing."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core import workers
from core.infra import queue, tracing
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.infra.tracing import TRACER
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.settings import Settings
from worker import device
from worker.attempt import Supervisor

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0
"""Seconds that a worker rests after a failure on our side, twice as long after each further one: a worker whose disk
or device is broken fails every attempt at once, and would fail the whole queue before anybody looks."""

log = structlog.get_logger(__name__)


class Work:
    """The body of the one task. Set `draining`, and the job being done goes back to the queue and no more is taken."""

    def __init__(self, settings: Settings, app: queue.Broker, training: Sequence[str]) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.settings, self.app, self.training = settings, app, training
        self.sessions = make_sessions(make_engine(settings))
        self.storage = Storage(settings)
        self.draining = threading.Event()
        self.pause = 0.0

    def __call__(self) -> None:
        """Do one job, if one waits; then hint again, since there may be more of them than hints."""
        with structlog.contextvars.bound_contextvars(worker=self.name):
            self._work()

    def _work(self) -> None:
        asked = time.time_ns()
        attempt = self._claim()
        if attempt is None:
            return
        with (
            structlog.contextvars.bound_contextvars(
                job=attempt.job_id, attempt=attempt.number, tenant=attempt.tenant, request_id=attempt.request_id
            ),
            TRACER.start_as_current_span(
                "attempt",
                tracing.parent_context(attempt.traceparent),
                attributes={"seft.job": attempt.job_id, "seft.attempt": attempt.number, "seft.worker": self.name},
                start_time=asked,
            ),
        ):
            TRACER.start_span("claim", start_time=asked).end()
            log.info("attempt.begun")
            used = device.used(self.settings)
            well = Supervisor(
                attempt, self.sessions, self.storage, self.settings, draining=self.draining, training=self.training
            ).run()
            well = self._left_nothing(used) and well
        self._consumed()
        queue.notify(self.app)
        self.pause = 0.0 if well else min(max(2 * self.pause, FIRST_PAUSE), LONGEST_PAUSE)
        self.draining.wait(self.pause)

    def _left_nothing(self, used: int | None) -> bool:
        """The device's memory is as free as it was: else the next job would fail for what is not its fault."""
        held = 0 if self.draining.is_set() else device.held(self.settings, used)
        if held:
            log.error("device.memory_held", bytes=held)
        return not held

    def _consumed(self) -> None:
        """It hears again, after a job that may have taken hours."""
        try:
            with self.sessions.begin() as session:
                workers.record_notification(session, self.name)
        except SQLAlchemyError as error:
            log.warning("worker.unseen", error=str(error))

    def _claim(self) -> Attempt | None:
        if self.draining.is_set():
            return None
        try:
            with self.sessions.begin() as session:
                workers.record_notification(session, self.name)
                settings, has = self.settings, device.ability(self.settings)
                return attempts.claim(
                    session,
                    self.name,
                    settings.lease_seconds,
                    has,
                    tenant_running=settings.tenant_running,
                    key_running=settings.key_running,
                )
        except SQLAlchemyError as error:
            log.warning("claim.failed", error=str(error))
            return None
