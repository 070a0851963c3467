"""Run a Celery worker with one thread for jobs, three for the sweep and one for pushes. The process loads no torch.

On the first SIGTERM or Ctrl-C, the running job saves its state and goes back to the queue. A second signal ends the
worker at once.
"""

import os
from collections.abc import Sequence

import structlog
from celery import Celery, signals

from core.infra import sandbox, tracing
from core.infra.logging import configure
from core.infra.queue import TASK, make_app
from core.settings import Settings, read
from worker import device, hub_upload
from worker.attempt import TRAINING
from worker.pusher import Pusher
from worker.sweep import Sweep
from worker.work import Work

log = structlog.get_logger(__name__)


def main(training: Sequence[str] = TRAINING) -> int:
    """Run the worker until a signal ends it, and return its exit status.

    `training` is the command that starts a training process.
    """
    settings = read(Settings)
    configure(settings)
    sandbox.forbid_memory_access()
    if missing := sandbox.missing(settings.devices):
        log.warning("sandbox.incomplete", missing=missing)
    tracing.configure("worker")
    device.find(settings.device, settings.devices)
    app = make_app(settings)
    work = Work(settings, app, training)
    app.task(work.__call__, name=TASK)
    Sweep(work.name, settings, app, work.sessions, work.storage).start()
    hub_upload.configure()
    Pusher(settings, work.sessions, work.storage, work.draining).start()

    def drain(**_: object) -> None:
        if work.draining.is_set():
            os._exit(1)
        work.draining.set()

    def keep_our_logging(**_: object) -> None:
        """Keep the logging of this project. Celery sets up its own logging unless a function handles this signal."""

    signals.worker_shutting_down.connect(drain, weak=False)
    signals.setup_logging.connect(keep_our_logging, weak=False)
    return serve(app, work.name)


def serve(app: Celery, name: str) -> int:
    """Receive notifications, one at a time, until a signal ends the worker. Return the exit status.

    Celery's communication between workers is off.
    """
    app.conf.update(broker_connection_max_retries=None, worker_redirect_stdouts=False)  # None: no limit
    worker = app.Worker(
        hostname=name,
        pool="threads",
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
