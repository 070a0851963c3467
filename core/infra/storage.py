"""Object storage on any server with an S3 API. This software chooses all keys, so no key needs escaping.

Datasets have keys `datasets/<sha256>.jsonl`. A multipart upload is at `imports/<import id>` until it is checked.
Files of an attempt have keys that start with `jobs/<job id>/<attempt>/`.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast
from urllib.parse import quote

import boto3
import structlog
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from typing_extensions import override

from core.infra.clock import Clock
from core.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        LifecycleRuleUnionTypeDef,
        ObjectIdentifierTypeDef,
        PartTypeDef,
    )

DELETE_BATCH = 1000
"""Maximum number of objects that S3 deletes in one request."""
PART_BYTES, MOST_PART_BYTES, PARTS = 16 << 20, 128 << 20, 10_000
"""Minimum and maximum bytes per part of a multipart upload, and maximum number of parts. S3 accepts no more parts."""
STREAM_PARTS = 5
"""Number of parts of a stream that are sent, and in memory, at the same time."""
READ_BYTES = 4 << 20
"""Bytes fetched per request when an object is read at random offsets."""
STORAGE_ERRORS = (Boto3Error, BotoCoreError, ClientError)
"""Errors of `Storage`: the server gave no answer, or rejected the request."""
REJECTIONS = frozenset({400, 404, 413, 416})
"""HTTP statuses of requests that the storage rejects in every try, except with one of `REPEATED_CODES`."""
REPEATED_CODES = frozenset({"IncompleteBody", "RequestTimeout"})
"""Error codes of requests that can be repeated: the body was cut or arrived too slowly."""
ABORT_INCOMPLETE_UPLOADS: "LifecycleRuleUnionTypeDef" = {
    "ID": "seft-torn-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
}
"""Bucket rule by which the server deletes the parts of uploads that were never completed.

The parts are not in lists of objects. `Storage.abort_uploads` is not enough, because not every server lists uploads.
"""

log = structlog.get_logger(__name__)


def part_bytes(size: int) -> int:
    """Return the bytes of every part except the last one, for an object of at most `size` bytes (up to 1.3 TB)."""
    return min(max(PART_BYTES, -(-size // PARTS)), MOST_PART_BYTES)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The key of an object, and when the object was last written, by the clock of the storage."""

    key: str
    modified: datetime


class Part(NamedTuple):
    """A part of a multipart upload that the storage has received."""

    bytes: int
    etag: str


class Storage:
    """One bucket. Safe to share between threads. If a request fails, methods raise one of `STORAGE_ERRORS`."""

    def __init__(self, settings: Settings) -> None:
        self._link_seconds = settings.link_seconds
        self._bucket = settings.s3_bucket
        self._s3 = _client(settings, settings.s3_endpoint)
        self.clock = Clock(self._s3)
        # Signing needs no connection, but the signature covers the host name that the user's request will have.
        public = settings.s3_public_endpoint
        self._signer = _client(settings, public) if public else self._s3

    def ensure_bucket(self) -> None:
        """Create the bucket if it is missing. Add `ABORT_INCOMPLETE_UPLOADS` if it has no rule of this kind."""
        try:
            self.ping()
        except ClientError as error:
            if not is_missing(error):
                raise
            # Another process may create it at the same moment.
            with suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
                self._s3.create_bucket(Bucket=self._bucket)
        try:
            self._abort_incomplete_uploads()
        except ClientError as error:  # no permission, or the server does not support lifecycle rules
            log.warning("storage.keeps_incomplete_uploads", error=str(error))

    def ping(self) -> None:
        """Raise an error if the bucket cannot be reached."""
        self._s3.head_bucket(Bucket=self._bucket)

    def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
        """Store a file, or a stream from its current position. A large one is sent in parts.

        `sent` is called with the number of bytes of each piece that was sent, in any thread.
        """
        if isinstance(source, Path):
            with self._joining(key, source.stat().st_size):
                self._s3.upload_file(str(source), self._bucket, key, Callback=sent)
        else:
            begin = source.tell()
            size = source.seek(0, io.SEEK_END) - begin
            source.seek(begin)
            with self._joining(key, size):
                self._s3.upload_fileobj(source, self._bucket, key, Callback=sent)

    def upload_stream(self, source: BinaryIO, key: str, size: int) -> None:
        """Store a stream that cannot seek, of `size` bytes. A large one is sent in parts."""
        config = TransferConfig(multipart_chunksize=part_bytes(size), max_concurrency=STREAM_PARTS)
        with self._joining(key, size):
            self._s3.upload_fileobj(source, self._bucket, key, Config=config)

    def download(self, key: str, path: Path) -> None:
        """Download an object to a file."""
        self._s3.download_file(self._bucket, key, str(path))

    def put(self, key: str, content: bytes) -> None:
        """Store bytes."""
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=content)

    def read(self, key: str, size: int | None = None) -> bytes:
        """Return the content of a small object, or the first `size` bytes of any object."""
        with self._s3.get_object(Bucket=self._bucket, Key=key)["Body"] as body:
            return body.read(size)

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Return `size` bytes of an object from offset `start`. The result is shorter only at the end of the object."""
        byte_range = f"bytes={start}-{start + size - 1}"
        with self._s3.get_object(Bucket=self._bucket, Key=key, Range=byte_range)["Body"] as body:
            return body.read(size)  # a server that does not know ranges would send the whole object

    def open(self, key: str, bucket: str | None = None) -> BinaryIO:
        """Open an object as a seekable file. `bucket` is another bucket to read from. None: this one."""
        return cast("BinaryIO", io.BufferedReader(_Object(self._s3, bucket or self._bucket, key), READ_BYTES))

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload and return its id. The object exists only after `finish_upload`."""
        return self._s3.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]

    def upload_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
        """Store one part of a multipart upload. Part numbers start at 1. S3 replaces a part that is sent again."""
        reply = self._s3.upload_part(Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=content)
        return Part(len(content), reply["ETag"])

    def part_link(self, key: str, upload: str, number: int, length: int) -> str:
        """Return a URL to which one part of exactly `length` bytes can be sent by PUT.

        Anyone who has the URL can use it for `link_seconds`.
        """
        params = {"Bucket": self._bucket, "Key": key, "UploadId": upload, "PartNumber": number, "ContentLength": length}
        return self._signer.generate_presigned_url("upload_part", Params=params, ExpiresIn=self._link_seconds)

    def parts(self, key: str, upload: str) -> dict[int, Part]:
        """Return the parts that were uploaded, by number. The result is empty if the upload was finished or aborted."""
        pages = self._s3.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload)
        return self._read_parts(lambda: (part for page in pages for part in page.get("Parts", ())))

    def parts_after(self, key: str, upload: str, after: int, limit: int) -> dict[int, Part]:
        """Return the same as `parts`, but only the first `limit` parts whose number is larger than `after`."""
        list_page = partial(self._s3.list_parts, Bucket=self._bucket, Key=key, UploadId=upload)
        return self._read_parts(lambda: list_page(PartNumberMarker=after, MaxParts=limit).get("Parts", ()))

    def _read_parts(self, read: Callable[[], Iterable["PartTypeDef"]]) -> dict[int, Part]:
        with suppress(self._s3.exceptions.NoSuchUpload):
            return {part["PartNumber"]: Part(part["Size"], part["ETag"]) for part in read()}
        return {}

    def finish_upload(self, key: str, upload: str, parts: Mapping[int, Part]) -> None:
        """Finish a multipart upload: join the parts into an object. Idempotent."""
        completed: list[CompletedPartTypeDef] = [{"PartNumber": n, "ETag": parts[n].etag} for n in sorted(parts)]
        with self._joining(key, sum(part.bytes for part in parts.values())):
            self._s3.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": completed}
            )

    @contextmanager
    def _joining(self, key: str, size: int) -> Iterator[None]:
        """While the `with` block runs, ignore that an upload is missing if its object of `size` bytes is there.

        The storage may have joined the parts although its reply was lost. It then does not find the upload again.
        """
        try:
            yield
        except STORAGE_ERRORS as error:
            if status_of(error) != 404 or self.modified(key) is None or self.size(key) != size:
                raise

    def has_upload(self, key: str, upload: str) -> bool:
        """Return whether the multipart upload was begun, and neither finished nor aborted."""
        with suppress(self._s3.exceptions.NoSuchUpload):
            self._s3.list_parts(Bucket=self._bucket, Key=key, UploadId=upload, MaxParts=1)
            return True
        return False

    def abort_upload(self, key: str, upload: str) -> None:
        """Abort a multipart upload: delete its parts. Idempotent."""
        with suppress(self._s3.exceptions.NoSuchUpload):
            self._s3.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    def abort_uploads(self, prefix: str) -> None:
        """Abort all multipart uploads of keys that start with `prefix`, if the server lists them."""
        try:
            for page in self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix):
                for each in page.get("Uploads", ()):
                    self.abort_upload(each["Key"], each["UploadId"])
        except ClientError as error:  # no permission, or the server does not support the list
            log.warning("storage.keeps_incomplete_uploads", error=str(error))

    def keys(self, prefix: str) -> list[str]:
        """Return all keys that start with `prefix`, sorted."""
        return sorted(each.key for page in self.pages(prefix) for each in page)

    def pages(self, prefix: str) -> Iterator[list[StoredObject]]:
        """Yield lists of up to 1000 objects whose keys start with `prefix`."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            yield [StoredObject(each["Key"], each["LastModified"]) for each in page.get("Contents", ())]

    def size(self, key: str) -> int:
        """Return the number of bytes of an object."""
        return self._s3.head_object(Bucket=self._bucket, Key=key)["ContentLength"]

    def modified(self, key: str) -> datetime | None:
        """Return when an object was last written, by the clock of the storage. Returns None if it does not exist."""
        try:
            return self._s3.head_object(Bucket=self._bucket, Key=key)["LastModified"]
        except ClientError as error:
            if is_missing(error):
                return None
            raise

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects with these keys. Idempotent.

        Raises ClientError if an object could not be deleted, after the others are deleted.
        """
        failed = None
        for start in range(0, len(keys), DELETE_BATCH):
            batch: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + DELETE_BATCH]]
            reply = self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
            if errors := reply.get("Errors"):
                answer = {"Error": {**errors[0]}, "ResponseMetadata": reply["ResponseMetadata"]}
                failed = failed or ClientError(answer, "DeleteObjects")  # type: ignore[arg-type]
        if failed:
            raise failed

    def link(self, key: str, *, saved_as: str | None = None) -> str:
        """Return a URL from which the object can be downloaded.

        Anyone who has the URL can use it for `link_seconds`. With `saved_as`, a browser saves the object under that
        name.
        """
        params = {"Bucket": self._bucket, "Key": key}
        if saved_as is not None:
            params["ResponseContentDisposition"] = _attachment(saved_as)
        return self._signer.generate_presigned_url("get_object", Params=params, ExpiresIn=self._link_seconds)

    def head_link(self, key: str) -> str:
        """Return a URL for a HEAD request, which reads the headers of the object. It works for `link_seconds`.

        A URL of `link` does not work for HEAD, because the signature of S3 covers the method.
        """
        params = {"Bucket": self._bucket, "Key": key}
        return self._signer.generate_presigned_url("head_object", Params=params, ExpiresIn=self._link_seconds)

    def _abort_incomplete_uploads(self) -> None:
        rules: list[LifecycleRuleUnionTypeDef] = []
        try:
            rules += self._s3.get_bucket_lifecycle_configuration(Bucket=self._bucket)["Rules"]
        except ClientError as error:
            if not is_missing(error):
                raise
        whole = [rule for rule in rules if (rule.get("Filter") or {"Prefix": rule.get("Prefix", "")}) == {"Prefix": ""}]
        if not any(rule["Status"] == "Enabled" and "AbortIncompleteMultipartUpload" in rule for rule in whole):
            self._s3.put_bucket_lifecycle_configuration(
                Bucket=self._bucket, LifecycleConfiguration={"Rules": [*rules, ABORT_INCOMPLETE_UPLOADS]}
            )


def is_outage(error: Exception) -> bool:
    """Return whether the same request may succeed later.

    This is so if there was no answer, if the storage has an error, or if an operator can correct the credentials.
    """
    return status_of(error) not in REJECTIONS or code_of(error) in REPEATED_CODES


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the answer of the storage, or None if it gave no answer."""
    answer = answer_of(error)
    return None if answer is None else answer.response["ResponseMetadata"]["HTTPStatusCode"]


def code_of(error: Exception) -> str | None:
    """Return the error code in the answer of the storage, or None if it gave none."""
    answer = answer_of(error)
    return answer.response.get("Error", {}).get("Code") if answer else None


def answer_of(error: Exception) -> ClientError | None:
    """Return the error with which the storage answered, or None if it gave no answer.

    boto3 wraps this error if the upload of a file fails.
    """
    cause = error.__context__ if isinstance(error, Boto3Error) else error
    return cause if isinstance(cause, ClientError) else None


def is_missing(error: ClientError) -> bool:
    """Return whether the error means that the object, the bucket or the bucket's setting does not exist."""
    return status_of(error) == 404


def _attachment(name: str) -> str:
    """Return a header Content-Disposition (RFC 6266). Programs that do not know `filename*` get an ASCII name."""
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


class _Object(io.RawIOBase):
    """An object as a raw stream. Each read is a separate request, so no connection stays open between two reads."""

    def __init__(self, s3: "S3Client", bucket: str, key: str) -> None:
        self._s3, self._bucket, self._key, self._at = s3, bucket, key, 0
        self._size = s3.head_object(Bucket=bucket, Key=key)["ContentLength"]

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes a memoryview
        end = min(self._at + len(buffer), self._size)
        if self._at >= end:
            return 0
        reply = self._s3.get_object(Bucket=self._bucket, Key=self._key, Range=f"bytes={self._at}-{end - 1}")
        with reply["Body"] as body:
            content = body.read()
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _client(settings: Settings, endpoint: str) -> "S3Client":
    """Create an S3 client for the server at `endpoint`.

    The bucket's name is in the path of a URL, not in its host name. Checksums are sent only if they are required,
    because many S3 servers reject them.
    """
    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 3},
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key.get_secret_value(),
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
        config=config,
    )
