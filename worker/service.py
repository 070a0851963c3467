"""A Celery worker with one thread for jobs and one for sweeping. Loads no torch.

SIGTERM or Ctrl-C lets the job in hand save itself and go back to the queue; the second one ends everything at once.
"""

import os
from collections.abc import Sequence

from celery import Celery, signals

from core.infra import tracing
from core.infra.logging import configure
from core.infra.queue import TASK, make_app
from core.settings import Settings
from worker import device
from worker.attempt import TRAINING
from worker.sweep import Sweep
from worker.work import Work


def main(training: Sequence[str] = TRAINING) -> int:
    """Serve until told to end; the exit status. `training` is the command that does a job."""
    settings = Settings()
    configure(settings)
    tracing.configure("worker")
    device.find(settings.device)
    app = make_app(settings)
    work = Work(settings, app, training)
    app.task(work.__call__, name=TASK)
    Sweep(work.name, settings, app, work.sessions, work.storage).start()

    def leave(**_: object) -> None:
        if work.draining.is_set():
            os._exit(1)
        work.draining.set()

    def keep_our_logging(**_: object) -> None:
        """Celery sets up its own logging only where nobody listens to this signal."""

    signals.worker_shutting_down.connect(leave, weak=False)
    signals.setup_logging.connect(keep_our_logging, weak=False)
    return serve(app, work.name)


def serve(app: Celery, name: str) -> int:
    """Consume hints, one at a time. Workers need not know of each other, so they do not talk."""
    app.conf.update(broker_connection_max_retries=None, worker_redirect_stdouts=False)  # None: for ever
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
