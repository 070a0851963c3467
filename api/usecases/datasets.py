"""Use cases of datasets: upload, download, preview, delete."""

from functools import partial
from typing import BinaryIO

from anyio.to_thread import run_sync
from fastapi.concurrency import contextmanager_in_threadpool

from api.deps import Services
from api.schemas.datasets import DatasetView, PreviewView
from api.schemas.shared import FileView
from api.usecases.audited import audited
from core.access import audit
from core.access.audit import Caller
from core.datasets import datasets, previews
from core.errors import ProblemError
from core.tables import Dataset


async def upload(
    services: Services, caller: Caller, file: BinaryIO, name: str | None, skip_percentage: float = 0.0
) -> DatasetView:
    """Check and store an uploaded file. Returns the existing dataset if one has the same content and name.

    Raises INVALID_DATASET if the file breaks a rule, LIMIT_REACHED if the tenant's storage is full, and BUSY if too
    many uploads wait to be checked.
    """
    async with services.uploads.turn(caller.tenant):
        return await run_sync(partial(_upload, services, caller, file, name, skip_percentage))


async def preview(
    services: Services, caller: Caller, dataset_id: str, *, model: str, revision: str | None = None, limit: int
) -> PreviewView:
    """Tokenize the first `limit` records of a dataset with the model's tokenizer.

    If it is cancelled, its process is killed; a running download is waited for. Raises BUSY if too many previews wait.
    """
    async with services.previews.turn(caller.tenant):
        row = await run_sync(_find, services, caller, dataset_id)
        opened = services.models.tokenizer(caller.tenant, model, revision)
        async with contextmanager_in_threadpool(opened) as (source, tokenizer):
            return PreviewView.of(row, source, await previews.preview(services.storage, row, tokenizer, limit))


def file(services: Services, caller: Caller, dataset_id: str) -> FileView:
    """Return the stored file of a dataset, with download links. A browser saves it under the name of the dataset."""
    row = _find(services, caller, dataset_id)
    name = datasets.file_name(row.name)
    return FileView.of(services.storage, row.object_key, name=name, size=row.bytes, sha256=row.sha256, saved_as=name)


def delete(services: Services, caller: Caller, dataset_id: str) -> DatasetView:
    """Delete a dataset. Raises CONFLICT if an unfinished job uses it."""
    return audited(services, caller, "delete_dataset", DatasetView.of, datasets.delete, dataset_id)


def _upload(
    services: Services, caller: Caller, file: BinaryIO, name: str | None, skip_percentage: float
) -> DatasetView:
    content = services.dataset_store.store(caller.tenant, file, skip_percentage)
    try:
        with services.sessions.begin() as session:
            row, new = services.dataset_store.find_or_add(session, caller.tenant, name or "", content)
            if new:
                audit.record(session, caller, "create_dataset", row.id)
            return DatasetView.of(row)
    except ProblemError:  # another upload has used the quota in the meantime
        with services.sessions.begin() as session:
            datasets.delete_object(session, services.storage, content.object_key)
        raise


def _find(services: Services, caller: Caller, dataset_id: str) -> Dataset:
    with services.sessions.begin() as session:
        row = datasets.get(session, caller.tenant, dataset_id)
        session.expunge(row)
        return row
