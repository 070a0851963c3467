"""Check files that were uploaded in parts, and download remote sources, in background threads of every API process.

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
from core.datasets import datasets, imports, sources
from core.datasets.datasets import Content
from core.errors import Code, ProblemError
from core.infra.storage import STORAGE_ERRORS, is_outage
from core.poller import Poller, renewed
from core.states import ImportState
from core.tables import Import

TRANSIENT = (Code.HUB_UNREACHABLE, Code.UNAVAILABLE)
"""Errors after which the import is tried again, because they may be temporary."""

log = structlog.get_logger(__name__)


class TenantsInWork:
    """The tenants whose imports the importers of one process work on. Importers claim imports under its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.names: set[str] = set()


class Importer(Poller):
    """A background thread that turns due imports into datasets.

    The importers of a process share `in_work`, so they never work for the same tenant at the same time.
    """

    def __init__(self, services: Services, in_work: TenantsInWork | None = None) -> None:
        super().__init__("importer")
        self.services = services
        self.in_work = in_work or TenantsInWork()

    @override
    def poll(self) -> int:
        """Process the next due import. Return 1, or 0 if no import is due."""
        with self.in_work.lock:
            with self.services.sessions.begin() as session:
                row = imports.claim(session, busy=self.in_work.names)
                if row is None:
                    return 0
                session.expunge(row)
            self.in_work.names.add(row.tenant)
        try:
            if row.state == ImportState.FAILED:  # it was tried too often
                self._delete_object(row)
            else:
                with renewed(partial(self._renew, row), imports.LEASE.total_seconds() / 4, self.name):
                    self._process(row)
        finally:
            with self.in_work.lock:
                self.in_work.names.discard(row.tenant)
        return 1

    def _process(self, row: Import) -> None:
        services, content, done = self.services, None, False
        try:
            with self._file(row) as file:
                content = services.dataset_store.store(row.tenant, file, row.skip_percentage, import_id=row.id)
            with services.sessions.begin() as session:
                if held := imports.lock_claimed(session, row):
                    dataset, _ = services.dataset_store.find_or_add(
                        session, row.tenant, row.name, content, import_id=row.id
                    )
                    imports.complete(held, dataset)
                    done = True
        except STORAGE_ERRORS as error:
            if not is_outage(error):
                raise
            log.warning("import.storage_unavailable", id=row.id, error=str(error))
            with services.sessions.begin() as session:
                if held := imports.lock_claimed(session, row):
                    imports.postpone(held)
            return
        except ProblemError as problem:
            log.info("import.refused", id=row.id, code=problem.code, attempt=row.tries)
            if problem.code in TRANSIENT and imports.tries_left(row) > 0:
                return
            with services.sessions.begin() as session:
                if held := imports.lock_claimed(session, row):
                    imports.fail(held, problem)
        if content and not done:
            self._delete_content(row, content)
        if held:  # otherwise another importer needs the object
            self._delete_object(row)

    def _delete_content(self, row: Import, content: Content) -> None:
        """Delete the records of an import that became no dataset. Another importer or a dataset may still need them.

        They must be deleted, because without a dataset they do not count against the tenant's storage quota.
        """
        with self.services.sessions.begin() as session:
            if not imports.is_unfinished(session, row.id):
                datasets.delete_object(session, self.services.storage, content.object_key)

    def _delete_object(self, row: Import) -> None:
        """Delete the uploaded file of an import that has ended. If this fails, a worker deletes it later."""
        if row.upload is not None:
            self.services.storage.delete([imports.key(row.id)])

    @contextmanager
    def _file(self, row: Import) -> Iterator[BinaryIO]:
        if row.source is None:
            yield self.services.storage.open(imports.key(row.id))
            return
        services, token = self.services, partial(self.services.hub_tokens.get, row.tenant)
        with sources.open_source(services.storage, row.source, services.settings.max_dataset_bytes, token) as file:
            yield file

    def _renew(self, row: Import) -> None:
        with self.services.sessions.begin() as session:
            imports.renew(session, row)
