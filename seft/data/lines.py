"""Reads the lines of a dataset file: JSONL, plain or compressed with gzip or zstd, or Parquet. Needs no torch.

The format is detected from the first bytes of a file, not from its name. A file is decompressed while it is read, so
memory use is constant. Reading stops if the content is larger than allowed, in total or relative to the file. A Parquet
file determines how much memory its reader needs, so it is read by a separate process with a memory limit
(`parquet_rows.py`).
"""

import gzip
import io
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from typing_extensions import override

from seft.errors import FileError

Read = Callable[[int], bytes]

MAX_LINE_BYTES = 16 << 20
"""Largest length of a line, in bytes."""
MAX_RATIO = 200
"""Largest allowed ratio of decompressed to compressed size. Text has 3 to 20; a larger ratio is an attempt to fill
disks."""
UNCHECKED_BYTES = 16 << 20
"""Decompressed size in bytes up to which the ratio is not checked."""
PARQUET_MEMORY_BYTES = 2 << 30
"""Memory limit, in bytes, of the process that reads a Parquet file, including pyarrow's own code."""
WINDOW_LOG = 27
"""Binary logarithm of the largest zstd decompression window, 128 MiB. It is the default limit of the zstd command."""

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_SKIPPABLE = b"\x2a\x4d\x18"
"""The last bytes of the number with which a skippable frame of zstd begins (RFC 8878, section 3.1.2)."""
_BUFFER = 1 << 20
_READER_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
"""Settings that keep the address space of the Parquet reader small. Other memory pools and more threads reserve
addresses that they do not use."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a file.

    Iterating yields pairs: a line with its line end, cut after `MAX_LINE_BYTES`, and its full length.
    """

    unit: str
    """What a line is called in this file format: `line` or `row`."""
    stream: io.BufferedReader

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        while raw := self.stream.readline(MAX_LINE_BYTES + 1):
            length, last = len(raw), raw
            while len(last) > MAX_LINE_BYTES and not last.endswith(b"\n"):
                last = self.stream.readline(MAX_LINE_BYTES + 1)
                length += len(last)
            yield raw, length


@contextmanager
def open_lines(file: BinaryIO, max_bytes: float) -> Iterator[Lines]:
    """Yield the lines of a file, from the start of the file.

    Reading the lines raises FileError if the file cannot be decompressed or contains more than `max_bytes`.
    """
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    if head == _PARQUET:
        with _parquet_rows(file) as (rows, size):
            yield Lines("row", io.BufferedReader(_Bounded(rows, lambda: size, max_bytes), _BUFFER))
        return
    read: Read = file.read
    if head.startswith(_GZIP):
        read = gzip.GzipFile(fileobj=file, mode="rb").read
    elif head == _ZSTD or head[1:] == _SKIPPABLE:
        read = _zstd(file)
    yield Lines("line", io.BufferedReader(_Bounded(read, file.tell, max_bytes), _BUFFER))


def _zstd(file: BinaryIO) -> Read:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise FileError(
            "must have a format that can be read here",
            "compressed with zstd",
            "Run pip install backports.zstd, or use gzip.",
        ) from error
    stream = zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})

    def read(count: int) -> bytes:
        try:
            return stream.read(count)
        except zstd.ZstdError as error:
            raise OSError(f"damaged ({error})") from error

    return read


class _Bounded(io.RawIOBase):
    """Stream that raises FileError if `read` returns too many bytes, in total or relative to the file.

    `position` returns the number of bytes read from the file.
    """

    def __init__(self, read: Read, position: Callable[[], int], max_bytes: float) -> None:
        self._read, self._position, self._max_bytes, self._size = read, position, max_bytes, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes a memoryview
        try:
            chunk = self._read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and type(error) not in {OSError, gzip.BadGzipFile}:
                raise  # It is no property of the file: the storage or the network failed, for example with a timeout.
            # An OSError without a number comes from this module. Its text already says what is wrong with the file.
            is_own = type(error) is OSError and error.errno is None
            value = str(error).rstrip(".") if is_own else f"damaged ({error})"
            raise FileError("must be complete and readable", value, "Create the file again.") from error
        self._size += len(chunk)
        if self._size > self._max_bytes:
            rule = f"must have at most {self._max_bytes:,} bytes after decompression"
            raise FileError(rule, "larger", "Split it, or ask the operator to raise SEFT_MAX_DATASET_BYTES.")
        if self._size > max(UNCHECKED_BYTES, MAX_RATIO * self._position()):
            rule = f"must decompress to at most {MAX_RATIO} times its size"
            raise FileError(rule, f"{self._size} bytes from {self._position()}", "Send it uncompressed.")
        buffer[: len(chunk)] = chunk
        return len(chunk)


def _refusal(output: bytes) -> FileError:
    """Return the error that a reader process wrote to standard error."""
    try:
        rule, value, way_out = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return FileError("must be complete and readable", "a file whose reader process crashed", "Create it again.")
    return FileError(rule, value, way_out)


@contextmanager
def _parquet_rows(file: BinaryIO) -> Iterator[tuple[Read, int]]:
    """Yield a function that reads the rows as JSON lines, and the size of the file.

    A separate process converts the rows. It gets no secrets.
    """
    if find_spec("pyarrow") is None:
        raise FileError("must have a format that can be read here", "Parquet", "Run pip install pyarrow, or use JSONL.")
    with TemporaryFile() as spool, TemporaryFile() as errors:
        shutil.copyfileobj(file, spool, _BUFFER)
        size = spool.tell()
        spool.seek(0)
        reader = Path(__file__).with_name("parquet_rows.py")
        command = [sys.executable, "-I", str(reader), str(PARQUET_MEMORY_BYTES)]
        with subprocess.Popen(
            command, stdin=spool, stdout=subprocess.PIPE, stderr=errors, env=_READER_ENVIRONMENT
        ) as process:
            assert process.stdout is not None
            rows = process.stdout

            def read(count: int) -> bytes:
                chunk = rows.read(count)
                if not chunk and process.wait():
                    errors.seek(0)
                    raise _refusal(errors.read())
                return chunk

            try:
                yield read, size
            finally:
                process.kill()
