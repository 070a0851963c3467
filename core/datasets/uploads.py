"""From a file to a dataset: checked, within what its tenant may store, stored, and its row made."""

from functools import partial
from typing import BinaryIO

from sqlalchemy.orm import Session, sessionmaker

from core.datasets import datasets
from core.datasets.datasets import Content
from core.infra.storage import Storage
from core.jobs import fairness
from core.settings import Settings
from core.tables import Dataset


class DatasetStore:
    """Of one process. Safe to share between threads."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], storage: Storage) -> None:
        self._sessions, self._storage = sessions, storage
        self._most = settings.max_dataset_bytes
        self._check_limit = partial(fairness.require_storage_quota, limit=settings.tenant_bytes)

    def store(self, tenant: str, file: BinaryIO, skip_percentage: float) -> Content:
        """Check a file and store it; INVALID_DATASET where it is no dataset, LIMIT_REACHED where it is too much."""
        content = datasets.read_content(file, self._most, skip_percentage)
        with self._sessions.begin() as session:
            self._check_limit(session, tenant, sha256=content.sha256, more=content.bytes)
        datasets.upload(self._storage, file, self._most, content)
        return content

    def keep(self, session: Session, tenant: str, name: str, content: Content) -> tuple[Dataset, bool]:
        """The row of what was stored, and whether it is new: the same content under the same name has one."""
        if former := datasets.find_equal(session, tenant, name, content):
            return former, False
        # Another upload may have come before.
        self._check_limit(session, tenant, sha256=content.sha256, more=content.bytes)
        datasets.require_stored(session, self._storage, content)
        return datasets.add(session, tenant, name, content), True
