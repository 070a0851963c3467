"""Recover jobs whose worker died and jobs whose notification was lost, and clean up after ended jobs."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import structlog
from botocore.exceptions import ClientError
from sqlalchemy.orm import Session, sessionmaker

from core import webhooks, workers
from core.datasets import imports
from core.infra import queue
from core.infra.storage import STORAGE_ERRORS, Storage
from core.jobs import recovery, retention
from core.settings import Settings
from core.states import Reason
from seft.models import hub_files
from worker import cleanup, device
from worker.calibration import Calibration

BATCH = 16
NOT_CONSUMING = 3
"""Exit status of a worker that ended itself because it no longer received notifications."""
PROBE, PROBE_BYTES = "probe", 1 << 20

log = structlog.get_logger(__name__)


class Sweep(threading.Thread):
    """A background thread of every worker that runs the sweep regularly. Errors are logged and do not end it.

    Two more threads run the steps that need the object storage, which may take minutes to answer. So these steps do not
    delay the heartbeat of the worker. One of the two threads lists all objects, which may take hours and must not delay
    paused jobs.
    """

    def __init__(
        self, worker: str, settings: Settings, app: queue.Broker, sessions: sessionmaker[Session], storage: Storage
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self.worker, self.settings, self.app, self.sessions, self.storage = worker, settings, app, sessions, storage
        self.rounds_not_consuming = 0
        self.calibration = Calibration(settings)
        self.rounds, self.calibrated = 0, False

    def run(self) -> None:
        """Run the steps in three loops that do not end."""
        database = (self.send_heartbeat, self.calibrate, self.requeue_lost, self.notify_waiting)
        storage = (self.clear_scratch, self.resume_paused, self.clean_up)
        for name, steps in (("cleanup", storage), ("expire", (self.expire,))):
            threading.Thread(target=self._repeat, args=(steps,), name=name, daemon=True).start()
        self._repeat(database)

    def run_once(self, steps: Iterable[Callable[[], None]]) -> None:
        """Run steps of the sweep, one after the other. If a step fails, the others still run."""
        for step in steps:
            with _errors_logged(step.__name__):
                step()

    def _repeat(self, steps: Sequence[Callable[[], None]]) -> None:
        structlog.contextvars.bind_contextvars(worker=self.worker)
        while True:
            self.run_once(steps)
            time.sleep(self.settings.sweep_seconds)

    def send_heartbeat(self) -> None:
        """Record that this worker is alive. If it no longer receives notifications, end it so that it is restarted."""
        capability, temperature = device.capability(self.settings), device.temperature(self.settings)
        with self.sessions.begin() as session:
            workers.record_heartbeat(session, self.worker, capability, temperature)
            not_consuming = workers.is_not_consuming(session, self.worker)
        self.rounds_not_consuming = self.rounds_not_consuming + 1 if not_consuming else 0
        if self.rounds_not_consuming > workers.MAX_MISSED_SWEEPS:
            self.rounds_not_consuming = 0
            queue.ping(self.app)  # raises an error if the broker is down: a restart does not help then
            log.error("worker.no_notifications")
            os._exit(NOT_CONSUMING)

    def calibrate(self) -> None:
        """Record the speed of the device once: the known speed of an equal device, or else a measurement.

        The measurement starts when no job runs here, but not in the first sweep: a worker that has just started may
        soon get a job.
        """
        self.rounds += 1
        if self.calibrated:
            return
        with self.sessions.begin() as session:
            flops = workers.find_flops(session).get(device.find(self.settings.device, self.settings.devices).name)
            idle = self.rounds > 1 and not workers.is_busy(session, self.worker)
        if flops is None:
            flops = self.calibration.poll(idle=idle)
        if flops is not None:
            with self.sessions.begin() as session:
                workers.record_flops(session, self.worker, flops)
            self.calibrated = True

    def requeue_lost(self) -> None:
        """Requeue, pause or fail running jobs whose lease has expired. Their workers are dead or unreachable."""
        with self.sessions.begin() as session:
            lost = recovery.requeue_lost(session, self.settings.max_failures)
        for job_id in lost:
            log.warning("job.lost", job=job_id)

    def resume_paused(self) -> None:
        """Requeue jobs that were paused for lack of space or for a server that did not answer, if the cause is over."""
        capability = device.capability(self.settings)
        checks: dict[Reason, Callable[[], bool]] = {
            Reason.DISK_FULL: lambda: True,  # `paused_for` compares the free space of the capability
            Reason.STORAGE_FULL: self._storage_accepts_writes,
            Reason.STORAGE_UNREACHABLE: self._storage_accepts_writes,
            Reason.HUB_UNREACHABLE: hub_files.is_reachable,
        }
        for reason, is_over in checks.items():
            with _errors_logged("resume_paused", reason=reason):
                with self.sessions.begin() as session:
                    waiting = recovery.paused_for(session, reason, capability)
                resumed: Sequence[str] = ()
                if waiting and is_over():
                    with self.sessions.begin() as session:
                        resumed = recovery.resume_paused_for(session, reason, capability)
                for job_id in resumed:
                    log.info("job.resumed", job=job_id, reason=reason)

    def notify_waiting(self) -> None:
        """Send notifications for jobs that have waited for two sweeps.

        Their notification may be lost, or a worker that cannot run them received it. At least one notification per
        live worker is sent, because the broker gives them to the workers in turn.
        """
        with self.sessions.begin() as session:
            waiting = recovery.mark_for_notification(session, 2 * self.settings.sweep_seconds, BATCH)
            live = workers.count(session, self.settings.sweep_seconds) if waiting else 0
        for _ in range(max(len(waiting), live)):
            if not queue.notify(self.app):
                break

    def clean_up(self) -> None:
        """Delete files that ended jobs have left in object storage."""
        for job_id, attempt in cleanup.ended_with_states(self.sessions, BATCH):
            with _errors_logged("clean_up", ClientError, job=job_id):
                cleanup.delete_leftovers(self.sessions, self.storage, job_id, attempt)

    def clear_scratch(self) -> None:
        """Delete files that ended jobs have left in the scratch folder."""
        cleanup.clear_scratch(self.sessions, self.settings.scratch)

    def expire(self) -> None:
        """Delete expired checkpoints and datasets, old deliveries and imports, and objects without a row.

        One worker does this, once per `tidy_seconds`.
        """
        with self.sessions.begin() as session:
            if not retention.claim_chore(session, "tidy", self.settings.tidy_seconds):
                return
        self.run_once((self.expire_rows, self.expire_uploads, self.delete_unreferenced))

    def expire_rows(self) -> None:
        """Delete expired checkpoints, datasets, deliveries and imports. Their objects then have no row."""
        days = self.settings.dataset_days
        steps: dict[str, Callable[[Session], int]] = {
            "checkpoints": lambda session: len(retention.expire_checkpoints(session)),
            "datasets": lambda session: len(retention.expire_datasets(session, days)),
            "deliveries": lambda session: webhooks.delete_old(session, retention.BATCH),
            "imports": lambda session: imports.delete_old(session, retention.BATCH),
        }
        for table, expire in steps.items():
            with _errors_logged("expire_rows", table=table):
                expired, count = 0, retention.BATCH
                while count >= retention.BATCH:
                    with self.sessions.begin() as session:
                        count = expire(session)
                    expired += count
                log.info("rows.expired", table=table, expired=expired)

    def expire_uploads(self) -> None:
        """Delete the parts of late uploads, and then mark the uploads as failed.

        In this order, a failure between the two steps leaves an upload that the next run finds again.
        """
        with self.sessions.begin() as session:
            late = imports.late_uploads(session)
        for import_id, upload in late:
            with _errors_logged("expire_uploads", ClientError, upload=import_id):
                self.storage.abort_upload(imports.key(import_id), upload)
                with self.sessions.begin() as session:
                    imports.expire(session, import_id)

    def delete_unreferenced(self) -> None:
        """Delete objects without a row."""
        removed = cleanup.delete_unreferenced(self.sessions, self.storage)
        log.info("storage.unreferenced_deleted", removed=removed)

    def _storage_accepts_writes(self) -> bool:
        """Return whether the object storage accepts a small object. S3 does not report how much space is free."""
        try:
            self.storage.put(PROBE, bytes(PROBE_BYTES))
            self.storage.delete([PROBE])
        except STORAGE_ERRORS:
            return False
        return True


@contextmanager
def _errors_logged(step: str, kind: type[Exception] = Exception, **item: str) -> Iterator[None]:
    """Log an error of this kind in the `with` block, so that the sweep continues with what follows.

    If the storage answers with an error, it raises ClientError, and the step continues with its next item. If the
    storage does not answer, it raises another error, and the step ends: its next items would also wait.
    """
    try:
        yield
    except kind as error:
        log.warning("sweep.failed", step=step, error=str(error), **item)
