"""Check files that were uploaded in parts, and download remote sources, in a background thread of every API process.

Each import is a row in the database. A process claims a row by a lease before it works on it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import structlog
from typing_extensions import override

from api.deps import Services
from api.poller import Poller
from core.datasets import imports, sources
from core.errors import Code, ProblemError
from core.tables import Import

TRANSIENT = (Code.HUB_UNREACHABLE, Code.UNAVAILABLE)
"""Errors after which the import is tried again, because they may be temporary."""

log = structlog.get_logger(__name__)


class Importer(Poller):
    """The background thread that turns due imports into datasets."""

    def __init__(self, services: Services) -> None:
        super().__init__("importer")
        self.services = services

    @override
    def poll(self) -> int:
        """Process the next due import. Return 1, or 0 if no import is due."""
        with self.services.sessions.begin() as session:
            row = imports.claim(session)
            if row is None:
                return 0
            session.expunge(row)
        with self._lease(row.id):
            self._process(row)
        return 1

    def _process(self, row: Import) -> None:
        services = self.services
        try:
            with self._file(row) as file:
                content = services.dataset_store.store(row.tenant, file, row.skip_percentage)
            with services.sessions.begin() as session:
                if held := imports.lock_claimed(session, row):
                    dataset, _ = services.dataset_store.find_or_add(session, row.tenant, row.name, content)
                    imports.complete(held, dataset)
        except ProblemError as problem:
            log.info("import.refused", id=row.id, code=problem.code, attempt=row.tries)
            if problem.code in TRANSIENT:
                return
            with services.sessions.begin() as session:
                if held := imports.lock_claimed(session, row):
                    imports.fail(held, problem)
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
    def _lease(self, import_id: str) -> Iterator[None]:
        """Renew the lease of an import regularly while the `with` block runs."""
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
