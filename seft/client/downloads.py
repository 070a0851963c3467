"""Downloads files in parallel parts, and resumes interrupted downloads.

A journal next to an unfinished file lists its finished parts, so a later download fetches only the missing parts. A
file gets its final name after all parts arrived and its SHA-256 matched. If the SHA-256 is wrong, the file is deleted.
A download replaces no file that it has not written.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from seft.client.errors import ClientError, IntegrityError, Unreachable, storage_rejection
from seft.client.responses import File
from seft.client.retries import attempted
from seft.client.steps import Open, Progress, Read, Reply, Request, Steps, Together, Work

PART_BYTES = 8 << 20
EXPIRED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
JOURNAL_HEAD = b'{"sha256": '
"""The first bytes of each journal. A file without them belongs to the user."""
Again = Callable[[], Steps[Sequence[File]]]


def fetch(
    folder: Path,
    again: Again,
    files: Sequence[File] | None = None,
    *,
    owner: str,
    at_once: int,
    progress: Progress | None,
    pauses: Sequence[float],
) -> Steps[list[Path]]:
    """Download the missing parts of some files. Returns their paths.

    `again` gets the files with new links, because links expire. It is called first if `files` are not given. `owner` is
    the checkpoint or the dataset that has the files. `at_once` is the number of parallel parts. Raises ClientError
    before anything is written if a file of the user would be replaced.
    """
    require_parallel(at_once)
    files = (yield from again()) if files is None else files
    targets = [_Target.of(file, folder, owner) for file in files]
    session = _Session(again, pauses, Meter(progress, sum(target.size for target in targets)))
    session.renew(files)
    for target in targets:
        if not (yield Work(target.is_complete)):
            target.require_no_other()
    for target in targets:
        if not target.done:
            target.prepare()
    missing = [part for target in targets for part in target.missing()]
    _require_disk_space(folder, missing)
    session.meter.add(session.meter.total - sum(part.end - part.start for part in missing))
    yield Together([session.part(part) for part in missing], at_once)
    yield Together([_finish(target) for target in targets if not target.done], at_once)
    return [target.path for target in targets]


@dataclass(slots=True)
class _Target:
    """A file to download, with its unfinished bytes and the journal of its finished parts."""

    name: str
    size: int
    sha256: str
    path: Path
    owner: str
    done: bool = False
    parts: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, file: File, folder: Path, owner: str) -> "_Target":
        name = PurePosixPath(file["name"])
        if name.is_absolute() or ".." in name.parts or "\\" in file["name"]:
            raise IntegrityError(
                f"The service names a file outside of the folder: {file['name']!r}. Report it to the operator."
            )
        return cls(file["name"], file["size"], file["sha256"], folder / name, owner)

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def journal(self) -> Path:
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def _head(self) -> str:
        return json.dumps({"sha256": self.sha256, "size": self.size, "part_bytes": PART_BYTES})

    def is_complete(self) -> bool:
        """Return whether the finished file is already in the folder."""
        self.done = (
            self.path.is_file() and self.path.stat().st_size == self.size and sha256_of(self.path) == self.sha256
        )
        return self.done

    def require_no_other(self) -> None:
        """Raise ClientError if a file exists that this download would replace, and that no download wrote."""
        started = self.journal.is_file() and self.journal.read_bytes().startswith(JOURNAL_HEAD)
        for path in (self.path,) if started else (self.path, self.partial, self.journal):
            if os.path.lexists(path):
                raise ClientError(
                    f"A download must not replace other files; {path} is not the one of {self.owner}."
                    " Give another folder or another name, or move that file away."
                )

    def prepare(self) -> None:
        """Continue an interrupted download of the same file, or start a new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.journal.read_text().splitlines() if self.journal.exists() and self.partial.exists() else []
        if lines[:1] == [self._head]:
            self.parts = {int(line) for line in lines[1:] if line.isdecimal()}
            return
        # The journal is first, because it says that the unfinished file belongs to a download.
        self.partial.unlink(missing_ok=True)
        self.journal.write_text(f"{self._head}\n")
        self.partial.write_bytes(b"")

    def missing(self) -> "Iterator[_Part]":
        """Yield the parts that are not downloaded yet."""
        if not self.done:
            for number, start in enumerate(range(0, self.size, PART_BYTES)):
                if number not in self.parts:
                    yield _Part(self, number, start, min(start + PART_BYTES, self.size))

    def finish(self) -> None:
        """Give the file its final name. If its SHA-256 is wrong, delete it and raise IntegrityError."""
        if (actual := sha256_of(self.partial)) != self.sha256:
            self.drop()
            raise IntegrityError(
                f"{self.name} must have the SHA-256 {self.sha256}; it is {actual}. It was deleted. Download again."
            )
        self.require_no_other()
        self.partial.replace(self.path)
        self.journal.unlink()

    def drop(self) -> None:
        """Delete the downloaded bytes."""
        self.partial.unlink()
        self.journal.unlink()


@dataclass(slots=True)
class _Part:
    """A part of a file: the bytes from `start` up to, but not including, `end`. `at` is the next byte to fetch."""

    target: _Target
    number: int
    start: int
    end: int
    at: int = field(init=False)

    def __post_init__(self) -> None:
        self.at = self.start

    def note(self) -> None:
        """Record in the journal that this part is finished."""
        with self.target.journal.open("a") as journal:
            journal.write(f"{self.number}\n")


class _Session:
    """State that all parts of one download share: links, pauses between attempts, and the count of bytes."""

    def __init__(self, again: Again, pauses: Sequence[float], meter: "Meter") -> None:
        self.again, self.pauses, self.meter = again, pauses, meter
        self.links: dict[str, str] = {}

    def renew(self, files: Sequence[File]) -> None:
        """Replace the expired links by the links of `files`."""
        self.links = {file["name"]: file["url"] for file in files}

    def part(self, part: _Part) -> Steps[None]:
        """Download a part. An attempt that received new bytes starts the count of retries again."""
        while part.at < part.end:
            try:
                reply = yield from attempted(lambda: self._more(part), self.pauses)
            except Unreachable as error:
                raise ClientError(
                    f"{part.target.name} cannot be downloaded: {error} Download again to resume."
                ) from error
            if reply.status != HTTPStatus.PARTIAL_CONTENT:
                raise ClientError(
                    f"{part.target.name} cannot be downloaded: {storage_rejection(reply)}"
                    " Download again, and ask the operator to check the storage if that does not help."
                )
        part.note()

    def _more(self, part: _Part) -> Steps[Reply]:
        """Request the missing bytes of a part, and write them as they arrive.

        Raises Unreachable if no byte arrives.
        """
        link = self.links[part.target.name]
        headers = {"Range": f"bytes={part.at}-{part.end - 1}", "Accept-Encoding": "identity"}
        reply: Reply = yield Open(Request("GET", link, headers=headers))
        if reply.status in EXPIRED:
            if link == self.links[part.target.name]:
                yield from self._renew_links()
            raise Unreachable(storage_rejection(reply))
        if reply.status == HTTPStatus.OK:
            raise ClientError(
                f"{part.target.name} cannot be downloaded in parts: the storage ignores the header Range."
                " Ask the operator to check the storage and the proxies in front of it."
            )
        if reply.status == HTTPStatus.PARTIAL_CONTENT:
            yield from self._write(part, reply)
        return reply

    def _renew_links(self) -> Steps[None]:
        try:
            self.renew((yield from self.again()))
        except Unreachable as error:  # it was already tried several times
            raise ClientError(f"{error} Download again to resume.") from error

    def _write(self, part: _Part, reply: Reply) -> Steps[None]:
        before = part.at
        try:
            with part.target.partial.open("r+b", buffering=0) as file:
                file.seek(part.at)
                while part.at < part.end and (chunk := (yield Read())):
                    inside = chunk[: part.end - part.at]
                    unwritten = memoryview(inside)
                    while unwritten:  # a disk that becomes full takes only the first bytes of a write
                        unwritten = unwritten[file.write(unwritten) :]
                    part.at += len(inside)
                    self.meter.add(len(inside))
        except Unreachable:
            if part.at == before:
                raise
        if part.at == before:
            raise Unreachable(f"The reply of {reply.url} ended early.")


class Meter:
    """Counts transferred bytes and reports them to the `progress` callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add `count` to the transferred bytes."""
        with self._lock:
            self.done += count
            if self.progress:
                self.progress(self.done, self.total)


def require_parallel(at_once: int) -> None:
    """Raise ClientError if no part may be sent or fetched at a time."""
    if at_once < 1:
        raise ClientError(f"at_once must be at least 1; it is {at_once}. 1 sends or fetches one part after another.")


def _finish(target: _Target) -> Steps[None]:
    yield Work(target.finish)


def _require_disk_space(folder: Path, missing: Sequence[_Part]) -> None:
    if not missing:
        return
    needed, free = sum(part.end - part.start for part in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"the download needs {needed:,} more bytes and {free:,} are free", str(folder))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
