"""Checks uploads that came in parts and fetches sources: a thread of every API process. The rows say what is owed."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import structlog
from typing_extensions import override

from api.deps import Services
from core.datasets import imports, sources
from core.errors import Code, ProblemError
from core.tables import Import

LOOK_SECONDS = 1.0
TIDY_SECONDS = 3600.0
PASSING = (Code.HUB_UNREACHABLE, Code.UNAVAILABLE)
"""What may go well at a later try."""

log = structlog.get_logger(__name__)


class Importer(threading.Thread):
    """Looks for imports that are due, for ever. Nothing that goes wrong ends it."""

    def __init__(self, services: Services) -> None:
        super().__init__(name="importer", daemon=True)
        self.services = services

    @override
    def run(self) -> None:
        pause, tidied = threading.Event(), time.monotonic()
        while True:
            found = False
            try:
                found = self.round()
                if time.monotonic() > tidied + TIDY_SECONDS:
                    tidied = time.monotonic()
                    with self.services.sessions.begin() as session:
                        imports.expire(session)
            except Exception as error:
                log.warning("importer.failed", error=str(error))
            if not found:
                pause.wait(LOOK_SECONDS)

    def round(self) -> bool:
        """Take the import that is due next, if there is one; whether there was."""
        with self.services.sessions.begin() as session:
            row = imports.claim(session)
            if row is None:
                return False
            session.expunge(row)
        with self._held(row.id):
            self._take(row)
        return True

    def _take(self, row: Import) -> None:
        services = self.services
        try:
            with self._file(row) as file:
                content = services.intake.store(row.tenant, file, row.skip_percentage)
            with services.sessions.begin() as session:
                if mine := imports.lock_claimed(session, row):
                    dataset, _ = services.intake.find_or_add(session, row.tenant, row.name, content)
                    imports.complete(mine, dataset)
        except ProblemError as problem:
            log.info("import.refused", id=row.id, code=problem.code, attempt=row.tries)
            if problem.code in PASSING:
                return
            with services.sessions.begin() as session:
                if mine := imports.lock_claimed(session, row):
                    imports.fail(mine, problem)
        if row.upload is not None:
            services.storage.delete([imports.key(row.id)])

    @contextmanager
    def _file(self, row: Import) -> Iterator[BinaryIO]:
        if row.source is None:
            yield self.services.storage.open(imports.key(row.id))
            return
        services, token = self.services, partial(self.services.hub_tokens.get, row.tenant)
        with sources.open_source(services.storage, row.source, services.settings.max_dataset_bytes, token) as file:
            yield file

    @contextmanager
    def _held(self, import_id: str) -> Iterator[None]:
        """Renew the lease of an import, however long it takes."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(imports.LEASE.total_seconds() / 4):
                try:
                    with self.services.sessions.begin() as session:
                        imports.renew(session, import_id)
                except Exception as error:
                    log.warning("importer.lease", error=str(error))

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
