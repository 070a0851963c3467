"""Datasets: an upload is checked line by line in constant memory, then kept under its hash, with a row for each upload.

`seft.data.validation` defines what a record is and what is stored. A rejected upload leaves no object and no row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import ids, totals
from core.errors import Code, Flaw, ProblemError
from core.infra.storage import Storage
from core.tables import Dataset, Job
from core.totals import Kind, Sum
from seft.data.records import Format
from seft.data.validation import MAX_FLAWS, open_valid_lines, validate
from seft.errors import FileError

NAME_CHARACTERS = 255
KEPT = Dataset.deleted_at.is_(None)


@dataclass(frozen=True, slots=True)
class Content:
    """What is kept of a checked file."""

    sha256: str
    bytes: int
    records: int
    format: Format
    skipped: int = 0
    """Broken lines that are not kept."""

    @property
    def object_key(self) -> str:
        """Where it lies in object storage; equal files lie at the same place."""
        return f"datasets/{self.sha256}.jsonl"


def read_content(file: BinaryIO, most: int, skip_percentage: float = 0.0) -> Content:
    """Read a file to its end. INVALID_DATASET with a flaw for each of its first broken lines.

    `most` is what it may hold, unpacked.
    """
    with _telling():
        found = validate(file, most, skip_percentage)
    if found.rejected or found.format is None:
        flaws = tuple(Flaw(f"{found.unit} {e.line}", e.rule, e.value, e.way_out) for e in found.flaws)
        more = " or more" if found.skipped == MAX_FLAWS else f" of {found.lines}"
        detail = f"{found.skipped}{more} {found.unit}s are no records; the dataset was not stored."
        raise ProblemError(Code.INVALID_DATASET, detail, flaws)
    return Content(found.sha256, found.bytes, found.records, found.format, found.skipped)


def upload(storage: Storage, file: BinaryIO, most: int, content: Content) -> None:
    """Store what is kept of a checked file. INVALID_DATASET, and nothing is stored, where it has changed since."""
    with _telling():
        storage.upload(open_valid_lines(file, most, content.sha256, whole=not content.skipped), content.object_key)


def find_equal(session: Session, tenant: str, name: str, content: Content) -> Dataset | None:
    """The tenant's dataset of this name and content, or None. Holds both until the transaction ends."""
    shown = clean_name(name)
    lock = func.pg_advisory_xact_lock(func.hashtextextended(f"{tenant}\n{content.sha256}\n{shown}", 0))
    session.execute(select(lock))
    same = (Dataset.tenant == tenant, Dataset.sha256 == content.sha256, Dataset.name == shown, KEPT)
    return session.scalars(select(Dataset).where(*same).order_by(Dataset.id).limit(1)).first()


def add(session: Session, tenant: str, name: str, content: Content) -> Dataset:
    """The row of an upload whose object is in place."""
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
    session.refresh(row)
    totals.add(session, Sum.UPLOADED_BYTES, Kind.DATASET, content.bytes)
    return row


def get(session: Session, tenant: str, dataset_id: str) -> Dataset:
    """The tenant's dataset, or NOT_FOUND."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.tenant == tenant, KEPT)
    row = session.scalar(query) if ids.is_id("file", dataset_id) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no dataset {dataset_id!r}. GET /datasets lists yours.")
    return row


def page(session: Session, tenant: str, *, after: str | None = None, limit: int) -> tuple[Sequence[Dataset], bool]:
    """Up to `limit` datasets, newest first, those older than `after`; and whether there are more."""
    query = select(Dataset).where(Dataset.tenant == tenant, KEPT).order_by(Dataset.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(Dataset.id < after)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit


def delete(session: Session, tenant: str, dataset_id: str) -> Dataset:
    """Mark it as deleted; CONFLICT while a job that has not ended names it, NOT_FOUND where there is none."""
    row = get(session, tenant, dataset_id)
    # A job that is being made now is waited for, and seen by the query after this one.
    session.refresh(row, with_for_update=True)
    live = select(Job.id).where(Job.dataset_id == row.id, Job.finished_at.is_(None)).limit(1)
    if job_id := session.scalar(live):
        detail = f"{job_id} needs the dataset and has not ended. Cancel it, or wait for its end."
        raise ProblemError(Code.CONFLICT, detail)
    row.deleted_at = func.now()
    return row


def require_stored(session: Session, storage: Storage, content: Content) -> None:
    """UNAVAILABLE where the object went in the moment between its upload and its row; from now on the row holds it."""
    _hold(session, content.object_key)
    if storage.modified(content.object_key) is None:
        detail = "An equal file was deleted while this one was sent. Send it again."
        raise ProblemError(Code.UNAVAILABLE, detail, retry_after=1)


def delete_object(session: Session, storage: Storage, key: str, before: datetime) -> bool:
    """Delete an object that no row names and that is older than `before`; whether it was one."""
    _hold(session, key)
    modified = storage.modified(key)
    named = session.scalar(select(Dataset.id).where(Dataset.object_key == key, KEPT).limit(1))
    if named or modified is None or modified >= before:
        return False
    storage.delete([key])
    return True


def _hold(session: Session, key: str) -> None:
    """Until the transaction ends nobody else deletes the object, or makes a row that names it."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))


def clean_name(name: str) -> str:
    """A file name fit to be shown: no folders, nothing that does not print, of bounded length."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return "".join(filter(str.isprintable, base)).strip()[:NAME_CHARACTERS] or "dataset.jsonl"


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        flaw = Flaw("file", error.rule, error.value, error.way_out)
        raise ProblemError(Code.INVALID_DATASET, f"{error} The dataset was not stored.", (flaw,)) from error
