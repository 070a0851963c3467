"""Datasets: an upload is checked line by line in constant memory, then kept under its hash, with a row for each upload.

What a record is, `seft.records` says; a refused upload leaves neither object nor row.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core import ids, totals
from core.errors import Code, Flaw, ProblemError
from core.storage import Storage
from core.tables import Dataset
from core.totals import Kind, Sum
from seft.errors import RecordError
from seft.records import WAY_OUT, Format, Parser, Record

FLAWS = 20
"""Reading ends at so many broken lines."""
LINE_BYTES = 16 << 20
NAME_CHARACTERS = 255
KEPT = Dataset.deleted_at.is_(None)


@dataclass(frozen=True, slots=True)
class Content:
    """What a checked file holds."""

    sha256: str
    bytes: int
    records: int
    format: Format

    @property
    def object_key(self) -> str:
        """Where it lies in object storage; equal files lie at the same place."""
        return f"datasets/{self.sha256}.jsonl"


def check(stream: BinaryIO) -> Content:
    """Read a JSONL file to its end. INVALID_DATASET with a flaw for each of the first `FLAWS` broken lines."""
    digest, size, records = hashlib.sha256(), 0, 0
    parse = Parser()
    first: Record | None = None
    distinct = False
    flaws: list[Flaw] = []
    for number, (raw, length) in enumerate(_lines(stream, digest), start=1):
        size += length
        records += 1
        try:
            record = _record(parse, number, raw, length)
        except RecordError as error:
            flaws.append(Flaw(f"line {error.line}", error.rule, error.value, error.way_out))
            if len(flaws) == FLAWS:
                break
            continue
        first = record if first is None else first
        distinct = distinct or record != first
    if flaws or not distinct or parse.format is None:
        raise _refused(flaws, records)
    return Content(digest.hexdigest(), size, records, parse.format)


def earlier(session: Session, tenant: str, name: str, content: Content) -> Dataset | None:
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


def must_be_stored(session: Session, storage: Storage, content: Content) -> None:
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


def _lines(stream: BinaryIO, digest: "hashlib._Hash") -> Iterator[tuple[bytes, int]]:
    """Each line, cut behind `LINE_BYTES`, with its whole length."""
    while raw := stream.readline(LINE_BYTES + 1):
        digest.update(raw)
        length = len(raw)
        last = raw
        while len(last) > LINE_BYTES and not last.endswith(b"\n"):
            last = stream.readline(LINE_BYTES + 1)
            digest.update(last)
            length += len(last)
        yield raw, length


def _record(parse: Parser, number: int, raw: bytes, length: int) -> Record:
    if length > LINE_BYTES:
        way_out = "Split the text into several records."
        raise RecordError(number, f"a line has at most {LINE_BYTES} bytes", f"a line of {length} bytes", way_out)
    return parse(number, raw)


def _refused(flaws: list[Flaw], records: int) -> ProblemError:
    if flaws:
        many = f"{FLAWS} or more lines are" if len(flaws) == FLAWS else f"{len(flaws)} of {records} lines are"
        return ProblemError(Code.INVALID_DATASET, f"{many} no records; the dataset was not stored.", tuple(flaws))
    seen = f"{records} equal records" if records > 1 else f"{records} records"
    rule = "holds at least two different records, one to train on and one to judge by"
    flaw = Flaw("file", rule, seen, WAY_OUT)
    return ProblemError(Code.INVALID_DATASET, f"The file holds {seen}; the dataset was not stored.", (flaw,))
