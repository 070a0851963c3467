"""One API process: the application and its background threads. A service can run several such processes."""

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

from fastapi import FastAPI

from api.app import make_app
from api.importer import Importer, TenantsInWork
from api.webhook_sender import WebhookSender
from core.infra import logging, tracing
from core.settings import Settings, read

IMPORTERS = 2
"""Number of imports that a process works on at the same time. They are of different tenants."""


def make_process_app() -> FastAPI:
    """Make the application and start its background threads.

    If a supervisor started this process, the process ends when the supervisor ends.
    """
    settings = read(Settings)
    logging.configure(settings)
    tracing.configure("api")
    if supervisor := parent_process():
        threading.Thread(target=_end_with, args=(supervisor,), name="parent-death", daemon=True).start()
    app = make_app(settings)
    WebhookSender(app.state.services.sessions, settings.webhook_networks).start()
    in_work = TenantsInWork()
    for _ in range(IMPORTERS):
        Importer(app.state.services, in_work).start()
    return app


def _end_with(supervisor: BaseProcess) -> None:
    # A supervisor that is killed cannot stop its processes, and they would keep the port.
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
