"""Validates a dataset file in one pass and constant memory, and reads its valid lines. Needs no torch.

The service stores every dataset as plain JSONL, for any format of the upload. So equal records have equal bytes and one
hash, a worker needs no decompression, and the first records can be read without the later ones.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

from typing_extensions import override

from seft.data.lines import MAX_LINE_BYTES, Lines, open_lines
from seft.data.records import WAY_OUT, Format, Parser, Record, require_lines
from seft.errors import FileError, RecordError

MAX_FLAWS = 20
"""Largest number of invalid lines whose errors are reported."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Validation:
    """Result of a validation: size and hash of the valid records as JSONL, and the errors of invalid lines."""

    unit: str
    sha256: str
    bytes: int
    records: int
    skipped: int
    """Number of invalid lines, which are left out."""
    format: Format | None
    flaws: tuple[RecordError, ...]
    """Errors of the first invalid lines, at most `MAX_FLAWS`."""
    rejected: bool
    """True if more lines are invalid than allowed."""

    @property
    def lines(self) -> int:
        """Number of lines that were read, valid or not."""
        return self.records + self.skipped


def validate(file: BinaryIO, max_bytes: float = math.inf, skip_percentage: float = 0.0) -> Validation:
    """Read and check a whole file. The result is `rejected` if more than `skip_percentage` of the lines are invalid.

    If no line may be invalid, reading stops after `MAX_FLAWS` invalid lines. Raises FileError if the file cannot be
    read, has more than `max_bytes` after decompression, does not have one record per line, or has fewer than two
    different records.
    """
    parse, digest = Parser(), hashlib.sha256()
    size = records = skipped = 0
    first: Record | None = None
    distinct = False
    flaws: list[RecordError] = []
    with open_lines(file, max_bytes) as lines:
        for line, record in _parsed(parse, lines):
            if not records and not skipped:
                require_lines(line, alone=not lines.stream.peek(1))
            if isinstance(record, RecordError):
                skipped += 1
                flaws += [record] if len(flaws) < MAX_FLAWS else []
                if not skip_percentage and skipped == MAX_FLAWS:
                    break
                continue
            digest.update(line)
            size, records = size + len(line), records + 1
            first = record if first is None else first
            distinct = distinct or record != first
        unit = lines.unit
    # A float would be rounded: 29 / 100 * 100 is less than 29.
    rejected = 100 * skipped > Fraction(str(skip_percentage)) * (records + skipped)
    if not distinct and not rejected:
        raise _too_few_records(records)
    return Validation(unit, digest.hexdigest(), size, records, skipped, parse.format, tuple(flaws), rejected)


def open_valid_lines(file: BinaryIO, max_bytes: float, sha256: str, *, whole: bool) -> io.BufferedReader:
    """Return a stream of the valid lines of a validated file. If `whole` is true, it has all lines.

    At its end the stream raises FileError if the content does not have the hash `sha256`, because the file has changed.
    """
    return io.BufferedReader(_Stream(_chunks(file, max_bytes, sha256, whole)), _CHUNK_BYTES)


def _chunks(file: BinaryIO, max_bytes: float, sha256: str, whole: bool) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with open_lines(file, max_bytes) as lines:
        for chunk in iter(lambda: lines.stream.read(_CHUNK_BYTES), b"") if whole else _valid(lines):
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != sha256:
        value = "a file whose content differs from the first reading"
        raise FileError("must not change while it is read", value, "Send it again.")


def _valid(lines: Lines) -> Iterator[bytes]:
    return (line for line, record in _parsed(Parser(), lines) if not isinstance(record, RecordError))


def _parsed(parse: Parser, lines: Lines) -> Iterator[tuple[bytes, Record | RecordError]]:
    for number, (line, length) in enumerate(lines, start=1):
        try:
            if length > MAX_LINE_BYTES:
                rule = f"a line must have at most {MAX_LINE_BYTES} bytes"
                way_out = "Split the text into several records."
                raise RecordError(number, rule, f"a line of {length} bytes", way_out)
            yield line, parse(number, line)
        except RecordError as error:
            yield line, error


def _too_few_records(records: int) -> FileError:
    rule = "must have at least two different records, one for training and one for evaluation"
    count = f"{records} record{'' if records == 1 else 's'}"
    value = f"a file with {count}{', all equal' if records > 1 else ''}"
    return FileError(rule, value, f"Add different records. {WAY_OUT}")


class _Stream(io.RawIOBase):
    """Stream whose bytes come from an iterator of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes a memoryview
        self._rest = self._rest or next(self._chunks, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
