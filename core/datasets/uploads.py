"""Turn an uploaded file into a dataset: check the file and the tenant's storage quota, store it, and add its row."""

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
    """Checks and stores uploaded files. Safe to share between threads."""

    def __init__(self, settings: Settings, sessions: sessionmaker[Session], storage: Storage) -> None:
        self._sessions, self._storage = sessions, storage
        self._max_bytes = settings.max_dataset_bytes
        self._check_limit = partial(fairness.require_storage_quota, limit=settings.tenant_bytes)

    def store(self, tenant: str, file: BinaryIO, skip_percentage: float, *, import_id: str = "") -> Content:
        """Check a file and store its records. `import_id` is the import that the file comes from, if any.

        Raises INVALID_DATASET if the file is not a valid dataset, and LIMIT_REACHED if it exceeds the tenant's
        storage quota.
        """
        content = datasets.read_content(file, self._max_bytes, skip_percentage)
        with self._sessions.begin() as session:
            self._check_limit(session, tenant, sha256=content.sha256, import_id=import_id, more=content.bytes)
        datasets.upload(self._storage, file, self._max_bytes, content)
        return content

    def find_or_add(
        self, session: Session, tenant: str, name: str, content: Content, *, import_id: str = ""
    ) -> tuple[Dataset, bool]:
        """Return the row of a dataset with this name and content. Add the row if there is none.

        The second value is true if the row was added.
        """
        if existing := datasets.reuse_equal(session, tenant, name, content):
            return existing, False
        # Before the quota is checked: this call waits for the storage, and the check locks the tenant.
        datasets.require_stored(session, self._storage, content)
        # The quota is checked again, because another upload may have used it up since `store`.
        self._check_limit(session, tenant, sha256=content.sha256, import_id=import_id, more=content.bytes)
        return datasets.add(session, tenant, name, content), True
