"""Finds what was lost: jobs whose worker fell silent, jobs whose hint was lost, what ended jobs have left behind."""

import os
import threading

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.orm import Session, sessionmaker

from core import workers
from core.infra import queue
from core.infra.storage import Storage
from core.jobs import recovery, retention
from core.settings import Settings
from core.states import Reason
from worker import cleanup, device

BATCH = 16
DEAF = 3
"""Exit status of a worker that ended because it took no more hints."""
PROBE, PROBE_BYTES = "probe", 1 << 20

log = structlog.get_logger(__name__)


class Sweep(threading.Thread):
    """A thread of every worker. Nothing that goes wrong ends it: what is away now is there in a later round."""

    def __init__(
        self, worker: str, settings: Settings, app: queue.Broker, sessions: sessionmaker[Session], storage: Storage
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self.worker, self.settings, self.app, self.sessions, self.storage = worker, settings, app, sessions, storage

        self.deaf_rounds = 0

    def run(self) -> None:
        """Sweep for ever."""
        structlog.contextvars.bind_contextvars(worker=self.worker)
        pause = threading.Event()
        while True:
            self.sweep_once()
            pause.wait(self.settings.sweep_seconds)

    def sweep_once(self) -> None:
        """Take every step, whatever becomes of the others."""
        for step in (
            self.send_heartbeat,
            self.requeue_lost,
            self.resume_waiting_for_space,
            self.notify_waiting,
            self.clean_up,
            self.tidy,
        ):
            try:
                step()
            except Exception as error:
                log.warning("sweep.failed", step=step.__name__, error=str(error))

    def send_heartbeat(self) -> None:
        """Tell that this worker lives; end it, for its supervisor to start anew, when it has gone deaf to hints."""
        has, temperature = device.ability(self.settings), device.temperature(self.settings)
        with self.sessions.begin() as session:
            workers.record_heartbeat(session, self.worker, has, temperature)
            deaf = workers.is_not_consuming(session, self.worker)
        self.deaf_rounds = self.deaf_rounds + 1 if deaf else 0
        if self.deaf_rounds > workers.MAX_MISSED_SWEEPS:
            log.error("worker.deaf")
            os._exit(DEAF)

    def requeue_lost(self) -> None:
        """Take back the jobs of silent workers."""
        with self.sessions.begin() as session:
            lost = recovery.requeue_lost(session, self.settings.max_failures)
        for job_id in lost:
            log.warning("job.lost", job=job_id)

    def resume_waiting_for_space(self) -> None:
        """Queue again what waits for room that is here now."""
        has, reasons = device.ability(self.settings), [Reason.DISK_FULL]
        with self.sessions.begin() as session:
            waiting = recovery.waiting_for_space(session, Reason.STORAGE_FULL, has)
        if waiting and self._storage_takes():
            reasons.append(Reason.STORAGE_FULL)
        with self.sessions.begin() as session:
            resumed = [job for reason in reasons for job in recovery.resume_waiting_for_space(session, reason, has)]
        for job_id in resumed:
            log.info("job.has_room", job=job_id)

    def notify_waiting(self) -> None:
        """Hint at jobs that have waited for two rounds: their message may be lost, or came to one who cannot do them.

        So there are enough of them for all workers, and the broker gives them out in turn.
        """
        with self.sessions.begin() as session:
            waiting = recovery.mark_for_notification(session, 2 * self.settings.sweep_seconds, BATCH)
            living = workers.count(session, self.settings.sweep_seconds) if waiting else 0
        for _ in range(max(len(waiting), living)):
            if not queue.notify(self.app):
                break

    def clean_up(self) -> None:
        """Remove what ended jobs have left in object storage and in the scratch folder."""
        for job_id, attempt in cleanup.ended_with_states(self.sessions, BATCH):
            cleanup.delete_leftovers(self.sessions, self.storage, job_id, attempt)
        cleanup.clear_scratch(self.sessions, self.settings.scratch)

    def tidy(self) -> None:
        """Every now and then, one of the workers: let go of what has expired, and of objects that no row names."""
        with self.sessions.begin() as session:
            if not retention.claim_chore(session, "tidy", self.settings.tidy_seconds):
                return
        with self.sessions.begin() as session:
            expired = retention.expire_checkpoints(session)
            expired += retention.expire_datasets(session, self.settings.dataset_days)
        removed = cleanup.delete_unreferenced(self.sessions, self.storage)
        log.info("storage.tidied", expired=expired, removed=removed)

    def _storage_takes(self) -> bool:
        """Whether object storage keeps a small object; how much more it has room for it does not tell."""
        try:
            self.storage.put(PROBE, bytes(PROBE_BYTES))
            self.storage.delete([PROBE])
        except (BotoCoreError, ClientError):
            return False
        return True
