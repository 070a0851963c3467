"""Datasets: check an uploaded file, store its records under their hash, and add a database row per upload.

A file is checked line by line, so the memory in use does not depend on its size. `seft.data.validation` defines what
a valid record is and in which form it is stored. A rejected upload leaves no object and no row.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from core import ids, totals
from core.errors import Code, Flaw, ProblemError
from core.infra.database import lock, newest_first
from core.infra.storage import Storage
from core.tables import Dataset, Job
from core.totals import Kind, Sum
from seft.data.records import COMPRESSED_ENDING, DATA_ENDING, Format
from seft.data.validation import MAX_FLAWS, open_valid_lines, validate
from seft.errors import FileError

NAME_CHARACTERS = 255
FORMATS = re.compile(f"{DATA_ENDING}?{COMPRESSED_ENDING}?$", re.IGNORECASE)
"""Endings of the names of files that can be uploaded."""
NOT_DELETED = Dataset.deleted_at.is_(None)
STORAGE_SECONDS = 600
"""Seconds that a transaction may wait for the storage. A single request, with all its retries, ends earlier."""


@dataclass(frozen=True, slots=True)
class Content:
    """Properties of the records of a file that was checked."""

    sha256: str
    bytes: int
    records: int
    format: Format
    skipped: int = 0
    """Number of invalid lines that were left out."""

    @property
    def object_key(self) -> str:
        """Key of the object in storage. Files with equal records have the same object."""
        return f"datasets/{self.sha256}.jsonl"


def read_content(file: BinaryIO, max_bytes: int, skip_percentage: float = 0.0) -> Content:
    """Read and check a whole file of at most `max_bytes`, counted after decompression.

    Raises INVALID_DATASET if the file is not a valid dataset. The error lists the first invalid lines.
    """
    with _file_errors():
        result = validate(file, max_bytes, skip_percentage)
    if result.rejected or result.format is None:
        flaws = tuple(Flaw(f"{result.unit} {e.line}", e.rule, e.value, e.way_out) for e in result.flaws)
        more = " or more" if result.skipped == MAX_FLAWS else f" of {result.lines}"
        detail = f"{result.skipped}{more} {result.unit}s are not valid records; the dataset was not stored."
        raise ProblemError(Code.INVALID_DATASET, detail, flaws)
    return Content(result.sha256, result.bytes, result.records, result.format, result.skipped)


def upload(storage: Storage, file: BinaryIO, max_bytes: int, content: Content) -> None:
    """Store the records of a file that was checked.

    Raises INVALID_DATASET, and stores nothing, if the file has changed since it was checked.
    """
    with _file_errors():
        lines = open_valid_lines(file, max_bytes, content.sha256, whole=not content.skipped)
        storage.upload_stream(lines, content.object_key, content.bytes)


def reuse_equal(session: Session, tenant: str, name: str, content: Content) -> Dataset | None:
    """Return the tenant's dataset with this name and content, or None. Sets its time of upload to now.

    Until the transaction ends, no other transaction can look up the same name and content.
    """
    cleaned = clean_name(name)
    lock(session, f"{tenant}\n{content.sha256}\n{cleaned}")
    same = (Dataset.tenant == tenant, Dataset.sha256 == content.sha256, Dataset.name == cleaned, NOT_DELETED)
    found = session.scalars(select(Dataset).where(*same).order_by(Dataset.id).limit(1).with_for_update()).first()
    if found:
        found.uploaded_at = session.scalars(select(func.now())).one()
    return found


def add(session: Session, tenant: str, name: str, content: Content) -> Dataset:
    """Add the row of a dataset whose object is already stored."""
    row = Dataset(
        id=ids.new("file"),
        tenant=tenant,
        name=clean_name(name),
        format=content.format,
        sha256=content.sha256,
        bytes=content.bytes,
        records=content.records,
        skipped=content.skipped,
        object_key=content.object_key,
    )
    session.add(row)
    session.flush()
    totals.add(session, Sum.UPLOADED_BYTES, Kind.DATASET, content.bytes)
    return row


def get(session: Session, tenant: str, dataset_id: str) -> Dataset:
    """Return the tenant's dataset with this id. Raises NOT_FOUND if the tenant has no such dataset."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant == tenant, NOT_DELETED)
    row = session.scalar(query) if ids.is_id("file", dataset_id) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no dataset {dataset_id!r}. List yours with GET /datasets.")
    return row


def page(session: Session, tenant: str, *, after: str | None = None, limit: int) -> tuple[Sequence[Dataset], bool]:
    """Return up to `limit` datasets older than `after`, newest first.

    The second value is true if there are older datasets.
    """
    return newest_first(session, Dataset, Dataset.tenant == tenant, NOT_DELETED, after=after, limit=limit)


def delete(session: Session, tenant: str, dataset_id: str) -> Dataset:
    """Mark a dataset as deleted.

    Raises NOT_FOUND if the tenant has no such dataset, and CONFLICT if a job that has not ended uses it.
    """
    row = get(session, tenant, dataset_id)
    # The lock waits for a job that is being created now, so that the next query sees it.
    session.refresh(row, with_for_update=True)
    uses = or_(*(used == row.id for used in (Job.dataset_id, Job.retain_dataset_id, Job.evaluate_dataset_id)))
    live = select(Job.id).where(uses, Job.finished_at.is_(None)).limit(1)
    if job_id := session.scalar(live):
        detail = f"{job_id} uses this dataset and has not ended. Cancel the job, or wait until it ends."
        raise ProblemError(Code.CONFLICT, detail)
    row.deleted_at = func.now()
    return row


def require_stored(session: Session, storage: Storage, content: Content) -> None:
    """Raise UNAVAILABLE if the object was deleted between its upload and this transaction, which adds its row.

    Until the transaction ends, nobody else can delete the object.
    """
    _lock_object(session, content.object_key)
    if storage.modified(content.object_key) is None:
        detail = "A file with the same content was deleted during this upload. Upload the file again."
        raise ProblemError(Code.UNAVAILABLE, detail, retry_after=1)


def delete_object(session: Session, storage: Storage, key: str, before: datetime | None = None) -> bool:
    """Delete an object if no row refers to it and it is older than `before`. Return True if it was deleted.

    Without `before`, its age does not matter. An upload of the same content that has no row yet then fails with
    UNAVAILABLE, so that the client sends the file again.
    """
    _lock_object(session, key)
    modified = storage.modified(key)
    referenced = session.scalar(select(Dataset.id).where(Dataset.object_key == key, NOT_DELETED).limit(1))
    if referenced or modified is None or (before is not None and modified >= before):
        return False
    storage.delete([key])
    return True


def _lock_object(session: Session, key: str) -> None:
    """Lock an object until the transaction ends. Other transactions can then not delete it or add a row for it.

    Also sets how long the transaction may wait for the storage: `STORAGE_SECONDS`. With a shorter time, the database
    could end the transaction and release the lock while the storage still deletes the object.
    """
    session.execute(select(func.set_config("idle_in_transaction_session_timeout", f"{STORAGE_SECONDS}s", True)))
    lock(session, key)


def clean_name(name: str) -> str:
    """Return the file name without folders and unprintable characters, and shortened, so that pages can show it."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return "".join(filter(str.isprintable, base)).strip()[:NAME_CHARACTERS] or "dataset.jsonl"


def file_name(name: str) -> str:
    """Return the name under which the file of a dataset is downloaded. The file is plain JSONL in any case."""
    return FORMATS.sub("", name) + ".jsonl"


@contextmanager
def _file_errors() -> Iterator[None]:
    """While the `with` block runs, turn a FileError of the library into INVALID_DATASET."""
    try:
        yield
    except FileError as error:
        flaw = Flaw("file", error.rule, error.value, error.way_out)
        raise ProblemError(Code.INVALID_DATASET, f"{error} The dataset was not stored.", (flaw,)) from error
