"""Reads ranges of bytes of a container on disk, at a web address or in S3. Downloads only what is asked for.

A request that fails is repeated a few times. Credentials of S3 come from the environment, as boto3 reads them.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Protocol, TypeVar

import httpx2

from seft.errors import ContainerError, SourceError
from seft.models.hub_files import NOT_FOUND, UNREACHABLE

T = TypeVar("T")
BLOCK_BYTES = 8 << 20
"""Largest number of bytes that `blocks` reads at a time."""
PAUSES = (0.5, 2.0, 5.0)
"""Seconds between the attempts of a request."""
_WEB, _S3 = ("http://", "https://"), "s3://"
_MISSING = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.FORBIDDEN, HTTPStatus.UNAUTHORIZED)
_SIZE_DIGITS = 18
_LEAST_SPEED, _PATIENCE = 10_000, 60.0
"""A request may take `_PATIENCE` seconds, plus one second for each `_LEAST_SPEED` bytes. A slower one is repeated."""
_TIMEOUT = httpx2.Timeout(30.0, read=60.0)


class ByteSource(Protocol):
    """A file of `size` bytes. Several threads may read any range of it. `name` is for messages."""

    name: str
    size: int

    def read(self, begin: int, size: int) -> bytes:
        """Return `size` bytes from the byte `begin`. Raises SeftError if they cannot be read."""

    def close(self) -> None:
        """Close the file or the connections."""


def blocks(source: ByteSource, begin: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes from the byte `begin`, in blocks of at most `BLOCK_BYTES`."""
    for at in range(begin, begin + size, BLOCK_BYTES):
        yield source.read(at, min(BLOCK_BYTES, begin + size - at))


def is_address(reference: str) -> bool:
    """Return whether a reference is a web address or an object in S3."""
    return reference.lower().startswith((*_WEB, _S3))


def public_name(reference: str) -> str:
    """Return a reference without the secrets of a web address: its query, and what is before an @."""
    if not reference.lower().startswith(_WEB):
        return reference
    return re.sub("//[^/]*@", "//", reference.partition("?")[0])


@contextmanager
def open_source(reference: str | Path, *, pauses: Sequence[float] = PAUSES) -> Iterator[ByteSource]:
    """Open a path, a web address, or `s3://bucket/key`. Raises SourceError if there is no such file."""
    source: ByteSource
    if isinstance(reference, Path) or not is_address(reference):
        source = LocalFile(Path(reference))
    elif reference.lower().startswith(_S3):
        bucket, _, key = reference[len(_S3) :].partition("/")
        source = S3Object(bucket, key, pauses)
    else:
        source = WebFile(reference, pauses)
    with closing(source):
        yield source


class LocalFile:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is a folder or a pipe")  # to open a pipe would wait for its writer
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            message = f"a compact container must be a readable file; {self.name!r} is not: {error}. Check the path."
            raise SourceError(NOT_FOUND, message) from error
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, begin: int, size: int) -> bytes:
        """Return `size` bytes from the byte `begin`. Raises SourceError if they cannot be read."""
        try:
            content = os.pread(self._file.fileno(), size, begin)
        except OSError as error:
            message = f"{self.name!r} cannot be read: {error}. Check the disk."
            raise SourceError(NOT_FOUND, message) from error
        return _whole(self.name, content, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WebFile:
    """A file at a web address. The server must be able to send ranges."""

    def __init__(self, url: str, pauses: Sequence[float]) -> None:
        self.name, self._url, self._pauses = public_name(url), url, pauses
        self._client = httpx2.Client(timeout=_TIMEOUT, follow_redirects=True)
        try:
            self.size = _tried(self._size, pauses)
        except BaseException:
            self._client.close()
            raise

    def read(self, begin: int, size: int) -> bytes:
        """Return `size` bytes from the byte `begin`."""
        return _tried(lambda: self._get(begin, size)[0], self._pauses) if size else b""

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _size(self) -> int:
        _, described = self._get(0, 1)
        total = described.rpartition("/")[2]
        if not (total.isascii() and total.isdecimal() and len(total) <= _SIZE_DIGITS):
            raise SourceError(UNREACHABLE, f"the server of {self.name} must send the size of the file. Download it.")
        return int(total)

    def _get(self, begin: int, size: int) -> tuple[bytes, str]:
        """Return a range and the header Content-Range. Raises ConnectionError if another attempt may succeed."""
        headers = {"Range": f"bytes={begin}-{begin + size - 1}", "Accept-Encoding": "identity"}
        content, end = bytearray(), time.monotonic() + _PATIENCE + size / _LEAST_SPEED
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                self._require_range(response.status_code)
                for part in response.iter_raw():
                    content += part
                    if len(content) > size:
                        break
                    if time.monotonic() > end:
                        raise ConnectionError(f"the server of {self.name} sends too few bytes per second")
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:  # UnicodeError: a host's name
            message = f"{self.name} must be a web address: {_sentence(error)} Check it."
            raise SourceError(NOT_FOUND, message) from error
        except httpx2.HTTPError as error:
            raise ConnectionError(f"{self.name} cannot be read: {type(error).__name__}: {error}") from error
        if len(content) != size:
            raise ConnectionError(f"{self.name} must send {size} bytes from {begin}; it sent another number")
        return bytes(content), response.headers.get("Content-Range", "")

    def _require_range(self, status: int) -> None:
        if status == HTTPStatus.PARTIAL_CONTENT:
            return
        if status in _MISSING:
            message = f"{self.name} must be a file that may be read; the server answers {status}. Check the address."
            raise SourceError(NOT_FOUND, message)
        if status == HTTPStatus.OK:
            message = f"the server of {self.name} must be able to send ranges of a file. Download the file instead."
            raise SourceError(UNREACHABLE, message)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ContainerError(f"{self.name} is too short to be a compact container. Upload it again.")
        raise ConnectionError(f"the server of {self.name} answers {status}")


class S3Object:
    """An object in S3, or in another storage whose address is in AWS_ENDPOINT_URL."""

    def __init__(self, bucket: str, key: str, pauses: Sequence[float]) -> None:
        self.name, self._pauses = f"s3://{bucket}/{key}", pauses
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            message = f"{self.name} needs the package boto3, which is not installed. Run pip install boto3."
            raise SourceError("package_missing", message) from error
        self._bucket, self._key = bucket, key
        self._errors = (BotoCoreError, ClientError)
        try:
            self._s3 = boto3.client("s3")
            self.size = self._s3.head_object(Bucket=bucket, Key=key)["ContentLength"]
        except (*self._errors, ValueError) as error:  # ValueError: AWS_ENDPOINT_URL is not an address
            message = f"{self.name} must be an object that may be read: {_sentence(error)} Check its name, the"
            message += " credentials and AWS_ENDPOINT_URL."
            raise SourceError(NOT_FOUND if isinstance(error, ClientError) else UNREACHABLE, message) from error

    def read(self, begin: int, size: int) -> bytes:
        """Return `size` bytes from the byte `begin`."""
        return _tried(lambda: self._get(begin, size), self._pauses) if size else b""

    def close(self) -> None:
        """Close the connections."""
        self._s3.close()

    def _get(self, begin: int, size: int) -> bytes:
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._key, Range=f"bytes={begin}-{begin + size - 1}")
            with closing(answer["Body"]) as body:
                return _whole(self.name, body.read(size), size)
        except self._errors as error:
            raise ConnectionError(f"{self.name} cannot be read: {error}") from error


def _whole(name: str, content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise ContainerError(f"{name} must have {size} more bytes; it has {len(content)}. Copy or download it again.")
    return content


def _sentence(error: Exception) -> str:
    """Return the text of an error with one full stop at its end."""
    return str(error).removesuffix(".") + "."


def _tried(request: Callable[[], T], pauses: Sequence[float]) -> T:
    """Return the result of a request. Repeats it after each of the pauses while it raises ConnectionError."""
    for pause in (*pauses, None):
        try:
            return request()
        except ConnectionError as error:
            if pause is None:
                raise SourceError(UNREACHABLE, f"{_sentence(error)} Try again later.") from error
            time.sleep(pause)
    raise AssertionError
