"""The lines of a dataset's file, whatever it is packed in: JSONL plain, by gzip or by zstd, or Parquet. Needs no torch.

What a file is its first bytes say, not its name. It is unpacked as it is read, so memory does not grow with it; one
that unpacks to too much, in all or for its size, is given up there. Parquet says in its own words how much memory its
reader has to take, so it is read by a process of its own that is given little (`seft/parquet_rows.py`).
"""

import gzip
import io
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

LINE_BYTES = 16 << 20
RATIO = 200
"""A file that unpacks to more than so many times its size is made to fill disks; texts come to 3 to 20."""
SMALL_BYTES = 16 << 20
"""Up to here no ratio counts."""
PARQUET_BYTES = 2 << 30
"""Memory that the reader of a Parquet file may take, pyarrow's own code included."""
WINDOW_LOG = 27
"""Of zstd, 128 MiB: what its own command line unpacks without being asked."""

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_BUFFER = 1 << 20
_LEAN = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
"""Other pools and more threads take addresses that they do not use."""


@dataclass(frozen=True, slots=True)
class Lines:
    """What a file holds: each line, its end included and cut behind `LINE_BYTES`, with its whole length."""

    unit: str
    """What a line is to whoever wrote the file: `line` or `row`."""
    stream: io.BufferedReader

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        while raw := self.stream.readline(LINE_BYTES + 1):
            length, last = len(raw), raw
            while len(last) > LINE_BYTES and not last.endswith(b"\n"):
                last = self.stream.readline(LINE_BYTES + 1)
                length += len(last)
            yield raw, length


@contextmanager
def unpacked(file: BinaryIO, most: float) -> Iterator[Lines]:
    """The lines of a file, read from its start; FileError where it cannot be unpacked or holds more than `most` bytes.

    The error comes while the lines are read.
    """
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    if head == _PARQUET:
        with _parquet_rows(file) as (rows, size):
            yield Lines("row", io.BufferedReader(_Bounded(rows, lambda: size, most), _BUFFER))
        return
    read: Read = file.read
    if head.startswith(_GZIP):
        read = gzip.GzipFile(fileobj=file, mode="rb").read
    elif head == _ZSTD:
        read = _zstd(file)
    yield Lines("line", io.BufferedReader(_Bounded(read, file.tell, most), _BUFFER))


def _zstd(file: BinaryIO) -> Read:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise FileError(
            "must be one that can be read here", "packed by zstd", "pip install backports.zstd, or pack it by gzip."
        ) from error
    packed = zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})

    def read(count: int) -> bytes:
        try:
            return packed.read(count)
        except zstd.ZstdError as error:
            raise OSError(str(error)) from error

    return read


class _Bounded(io.RawIOBase):
    """What `read` gives, up to its limits. `packed` tells how many bytes of the file have been read."""

    def __init__(self, read: Read, packed: Callable[[], int], most: float) -> None:
        self._read, self._packed, self._most, self._seen = read, packed, most, 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader gives one
        try:
            chunk = self._read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise FileError("must be whole and unpack", str(error).rstrip("."), "Pack it again.") from error
        self._seen += len(chunk)
        if self._seen > self._most:
            rule = f"holds at most {self._most:g} bytes, unpacked"
            raise FileError(rule, "more", "Split it, or have the operator raise the limit.")
        if self._seen > max(SMALL_BYTES, RATIO * self._packed()):
            rule = f"unpacks to at most {RATIO} times its size"
            raise FileError(rule, f"{self._seen} bytes out of {self._packed()}", "Send it unpacked.")
        buffer[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def _parquet_rows(file: BinaryIO) -> Iterator[tuple[Read, int]]:
    """A way to read the rows as JSON lines, and the file's size. The process is told no secret."""
    if find_spec("pyarrow") is None:
        raise FileError("must be one that can be read here", "Parquet", "pip install pyarrow, or give JSONL.")
    with TemporaryFile() as spool, TemporaryFile() as told:
        shutil.copyfileobj(file, spool, _BUFFER)
        size = spool.tell()
        spool.seek(0)
        reader = Path(__file__).with_name("parquet_rows.py")
        command = [sys.executable, "-I", str(reader), str(PARQUET_BYTES)]
        with subprocess.Popen(command, stdin=spool, stdout=subprocess.PIPE, stderr=told, env=_LEAN) as process:
            assert process.stdout is not None
            rows = process.stdout

            def read(count: int) -> bytes:
                chunk = rows.read(count)
                if not chunk and process.wait():
                    told.seek(0)
                    said = told.read().decode(errors="replace").strip().splitlines() or ["its reader died"]
                    raise OSError(said[-1])
                return chunk

            try:
                yield read, size
            finally:
                process.kill()
