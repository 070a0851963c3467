"""What a dataset's file holds, found in one pass and constant memory, and what is kept of it. Needs no torch.

A service keeps datasets as plain JSONL, whatever they came in: then equal records have equal bytes and one hash, a
worker needs nothing to unpack them with, and their beginning can be read without the rest.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from typing_extensions import override

from seft.data.records import WAY_OUT, Format, Parser, Record
from seft.data.unpacking import LINE_BYTES, Lines, unpacked
from seft.errors import FileError, RecordError

FLAWS = 20
"""So many broken lines are told."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Survey:
    """The records that are kept, as JSONL: `bytes` of this `sha256`; and what is wrong."""

    unit: str
    sha256: str
    bytes: int
    records: int
    skipped: int
    """Broken lines, which are not kept."""
    format: Format | None
    flaws: tuple[RecordError, ...]
    """The first of them."""
    refused: bool

    @property
    def lines(self) -> int:
        """All that were read."""
        return self.records + self.skipped


def survey(file: BinaryIO, most: float = math.inf, skip_percentage: float = 0.0) -> Survey:
    """Read a file to its end; FileError where there is none to be read or it holds nothing to train on and judge by.

    It is refused where more than `skip_percentage` of its lines are broken; where none may be, after the first `FLAWS`.
    """
    parse, digest = Parser(), hashlib.sha256()
    size = records = skipped = 0
    first: Record | None = None
    distinct = False
    flaws: list[RecordError] = []
    with unpacked(file, most) as lines:
        for line, found in _parsed(parse, lines):
            if isinstance(found, RecordError):
                skipped += 1
                flaws += [found] if len(flaws) < FLAWS else []
                if not skip_percentage and skipped == FLAWS:
                    break
                continue
            digest.update(line)
            size, records = size + len(line), records + 1
            first = found if first is None else first
            distinct = distinct or found != first
        unit = lines.unit
    refused = skipped > skip_percentage / 100 * (records + skipped)
    if not distinct and not refused:
        raise _alike(records)
    return Survey(unit, digest.hexdigest(), size, records, skipped, parse.format, tuple(flaws), refused)


def kept(file: BinaryIO, most: float, sha256: str, *, whole: bool) -> io.BufferedReader:
    """What is kept of a file that was surveyed, to be read once: all of it, or what is no broken line.

    FileError at its end where its hash is another one now.
    """
    return io.BufferedReader(_Stream(_kept(file, most, sha256, whole)), _CHUNK)


def _kept(file: BinaryIO, most: float, sha256: str, whole: bool) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with unpacked(file, most) as lines:
        for piece in iter(lambda: lines.stream.read(_CHUNK), b"") if whole else _sound(lines):
            digest.update(piece)
            yield piece
    if digest.hexdigest() != sha256:
        raise FileError("must not change while it is read", "another one now", "Send it again.")


def _sound(lines: Lines) -> Iterator[bytes]:
    return (line for line, record in _parsed(Parser(), lines) if not isinstance(record, RecordError))


def _parsed(parse: Parser, lines: Lines) -> Iterator[tuple[bytes, Record | RecordError]]:
    for number, (line, length) in enumerate(lines, start=1):
        try:
            if length > LINE_BYTES:
                rule, way_out = f"a line has at most {LINE_BYTES} bytes", "Split the text into several records."
                raise RecordError(number, rule, f"a line of {length} bytes", way_out)
            yield line, parse(number, line)
        except RecordError as error:
            yield line, error


def _alike(records: int) -> FileError:
    rule = "holds at least two different records, one to train on and one to judge by"
    return FileError(rule, f"{records} equal records" if records > 1 else f"{records} records", WAY_OUT)


class _Stream(io.RawIOBase):
    """Pieces of bytes, one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader gives one
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
