"""Handle a notification: claim a job and run it. A notification may be lost, duplicated or outdated."""

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
"""Minimum and maximum seconds of a worker's pause after a system error. Each further error doubles the pause.

Without a pause, a worker with a broken disk or device would quickly fail every job in the queue.
"""

log = structlog.get_logger(__name__)


class Work:
    """The Celery task that handles notifications.

    If `draining` is set, the running job goes back to the queue and no further job is claimed.
    """

    def __init__(self, settings: Settings, app: queue.Broker, training: Sequence[str]) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.settings, self.app, self.training = settings, app, training
        self.sessions = make_sessions(make_engine(settings))
        self.storage = Storage(settings)
        self.draining = threading.Event()
        self.pause = 0.0

    def __call__(self) -> None:
        """Run the next job of the queue, if any.

        After a job, notify again, because more jobs than notifications may be waiting.
        """
        with structlog.contextvars.bound_contextvars(worker=self.name):
            self._work()

    def _work(self) -> None:
        started = time.time_ns()
        used = device.used_memory(self.settings)  # before the claim, because the driver may be slow to answer
        attempt = self._claim()
        if attempt is None:
            return
        healthy = False
        try:
            with (
                structlog.contextvars.bound_contextvars(
                    job=attempt.job_id, attempt=attempt.number, tenant=attempt.tenant, request_id=attempt.request_id
                ),
                TRACER.start_as_current_span(
                    "attempt",
                    tracing.parent_context(attempt.traceparent),
                    attributes={"seft.job": attempt.job_id, "seft.attempt": attempt.number, "seft.worker": self.name},
                    start_time=started,
                ),
            ):
                TRACER.start_span("claim", start_time=started).end()
                log.info("attempt.started")
                healthy = Supervisor(
                    attempt, self.sessions, self.storage, self.settings, draining=self.draining, training=self.training
                ).run()
                healthy = self._is_memory_freed(used) and healthy
        finally:
            self._record_notification()
            queue.notify(self.app)
            self.pause = 0.0 if healthy else min(max(2 * self.pause, FIRST_PAUSE), LONGEST_PAUSE)
            self.draining.wait(self.pause)

    def _is_memory_freed(self, used: list[int] | None) -> bool:
        """Return whether the memory that the job used on the device was freed. If not, the next job could fail."""
        unfreed = 0 if self.draining.is_set() else device.unfreed_memory(self.settings, used)
        if unfreed:
            log.error("device.memory_not_freed", bytes=unfreed)
        return not unfreed

    def _record_notification(self) -> None:
        """Record that the worker receives notifications again, after a job that may have taken hours."""
        try:
            with self.sessions.begin() as session:
                workers.record_notification(session, self.name)
        except SQLAlchemyError as error:
            log.warning("worker.not_recorded", error=str(error))

    def _claim(self) -> Attempt | None:
        if self.draining.is_set():
            return None
        try:
            with self.sessions.begin() as session:
                workers.record_notification(session, self.name)
                settings, capability = self.settings, device.capability(self.settings)
                return attempts.claim(
                    session,
                    self.name,
                    settings.lease_seconds,
                    capability,
                    tenant_running=settings.tenant_running,
                    key_running=settings.key_running,
                    weights=settings.tenant_weights,
                )
        except SQLAlchemyError as error:
            log.warning("claim.failed", error=str(error))
            return None
