"""Object storage: any server that speaks S3. Keys are ours, so none of them needs escaping.

Datasets lie at `datasets/<sha256>.jsonl`, uploads in parts at `imports/<import id>` until they are checked, what an
attempt writes under `jobs/<job id>/<attempt>/`.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import ClientError
from typing_extensions import override

from core.infra.clock import Clock
from core.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, LifecycleRuleUnionTypeDef, ObjectIdentifierTypeDef

DELETE_BATCH = 1000
"""S3 deletes no more objects than this with one request."""
READ_BYTES = 4 << 20
"""Of an object that is read here and there, fetched at a time."""
TORN: "LifecycleRuleUnionTypeDef" = {
    "ID": "seft-torn-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
}
"""The parts of an upload that was never completed are no object, so that no list shows them: the server drops them."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """An object in a list, and when it was written by the storage's clock."""

    key: str
    modified: datetime


class Part(NamedTuple):
    """A part of an upload that is there."""

    bytes: int
    etag: str


class Storage:
    """One bucket. Safe to share between threads; errors are botocore's."""

    def __init__(self, settings: Settings) -> None:
        self._link_seconds = settings.link_seconds
        self._bucket = settings.s3_bucket
        self._s3 = _client(settings, settings.s3_endpoint)
        self.clock = Clock(self._s3)
        # Signing needs no connection, but the host that the user will name.
        self._signer = _client(settings, settings.s3_public_endpoint or settings.s3_endpoint)

    def ensure_bucket(self) -> None:
        """Make the bucket where it is missing, with the rule `TORN` where it has none of the kind."""
        try:
            self.ping()
        except ClientError as error:
            if not missing(error):
                raise
            # Another process may make it at the same moment.
            with suppress(self._s3.exceptions.BucketAlreadyOwnedByYou):
                self._s3.create_bucket(Bucket=self._bucket)
        try:
            self._drop_torn_uploads()
        except ClientError as error:  # no right to, or a server that knows no such rules
            log.warning("storage.keeps_torn_uploads", error=str(error))

    def ping(self) -> None:
        """Raise when the bucket cannot be reached."""
        self._s3.head_bucket(Bucket=self._bucket)

    def upload(self, source: Path | BinaryIO, key: str) -> None:
        """Store a file or what a stream still holds, in parts where it is large."""
        if isinstance(source, Path):
            self._s3.upload_file(str(source), self._bucket, key)
        else:
            self._s3.upload_fileobj(source, self._bucket, key)

    def download(self, key: str, path: Path) -> None:
        """Write an object into a file."""
        self._s3.download_file(self._bucket, key, str(path))

    def put(self, key: str, content: bytes) -> None:
        """Store bytes."""
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=content)

    def read(self, key: str, most: int | None = None) -> bytes:
        """A small object's bytes, or the first `most` of any object's."""
        with self._s3.get_object(Bucket=self._bucket, Key=key)["Body"] as body:
            return body.read(most)

    def part(self, key: str, start: int, size: int) -> bytes:
        """So many bytes of an object from `start` on, or as many as there are."""
        asked = f"bytes={start}-{start + size - 1}"
        with self._s3.get_object(Bucket=self._bucket, Key=key, Range=asked)["Body"] as body:
            return body.read()

    def open(self, key: str, bucket: str | None = None) -> BinaryIO:
        """An object, of this bucket or another one, as a file that can be sought in."""
        return cast("BinaryIO", io.BufferedReader(_Object(self._s3, bucket or self._bucket, key), READ_BYTES))

    def begin(self, key: str) -> str:
        """Begin an upload in parts; its id. It is no object before it is finished."""
        return self._s3.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]

    def part_link(self, key: str, upload: str, number: int, length: int) -> str:
        """A URL that lets its holder PUT one part, of this many bytes, for `link_seconds`."""
        params = {"Bucket": self._bucket, "Key": key, "UploadId": upload, "PartNumber": number, "ContentLength": length}
        return self._signer.generate_presigned_url("upload_part", Params=params, ExpiresIn=self._link_seconds)

    def parts(self, key: str, upload: str) -> dict[int, Part]:
        """The parts that are there, by their numbers; none of an upload that is finished or was aborted."""
        pages = self._s3.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload)
        try:
            found = [part for page in pages for part in page.get("Parts", ())]
        except self._s3.exceptions.NoSuchUpload:
            return {}
        return {part["PartNumber"]: Part(part["Size"], part["ETag"]) for part in found}

    def finish(self, key: str, upload: str, parts: Mapping[int, Part]) -> None:
        """Make the parts an object."""
        made: list[CompletedPartTypeDef] = [{"PartNumber": n, "ETag": parts[n].etag} for n in sorted(parts)]
        self._s3.complete_multipart_upload(
            Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": made}
        )

    def abort(self, key: str, upload: str) -> None:
        """Forget the parts; that there are none is no error."""
        with suppress(self._s3.exceptions.NoSuchUpload):
            self._s3.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with `prefix`, sorted."""
        return sorted(found.key for page in self.pages(prefix) for found in page)

    def pages(self, prefix: str) -> Iterator[list[Found]]:
        """All objects whose keys start with `prefix`, up to a thousand at a time."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            yield [Found(each["Key"], each["LastModified"]) for each in page.get("Contents", ())]

    def modified(self, key: str) -> datetime | None:
        """When an object was written, by the storage's clock; None when there is none."""
        try:
            return self._s3.head_object(Bucket=self._bucket, Key=key)["LastModified"]
        except ClientError as error:
            if missing(error):
                return None
            raise

    def delete(self, keys: Sequence[str]) -> None:
        """Remove these objects; one that is not there is no error, one that stays is a ClientError."""
        for start in range(0, len(keys), DELETE_BATCH):
            batch: list[ObjectIdentifierTypeDef] = [{"Key": key} for key in keys[start : start + DELETE_BATCH]]
            reply = self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
            if errors := reply.get("Errors"):
                raise ClientError({"Error": {**errors[0]}}, "DeleteObjects")  # type: ignore[typeddict-unknown-key]

    def link(self, key: str, *, saved_as: str | None = None) -> str:
        """A URL that lets its holder GET the object for `link_seconds`. A browser saves it under the name given."""
        params = {"Bucket": self._bucket, "Key": key}
        if saved_as is not None:
            params["ResponseContentDisposition"] = f'attachment; filename="{saved_as}"'
        return self._signer.generate_presigned_url("get_object", Params=params, ExpiresIn=self._link_seconds)

    def _drop_torn_uploads(self) -> None:
        rules: list[LifecycleRuleUnionTypeDef] = []
        try:
            rules += self._s3.get_bucket_lifecycle_configuration(Bucket=self._bucket)["Rules"]
        except ClientError as error:
            if not missing(error):
                raise
        if not any("AbortIncompleteMultipartUpload" in rule for rule in rules):
            self._s3.put_bucket_lifecycle_configuration(
                Bucket=self._bucket, LifecycleConfiguration={"Rules": [*rules, TORN]}
            )


def missing(error: ClientError) -> bool:
    """Whether the storage answered that there is no such thing."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] == 404


class _Object(io.RawIOBase):
    """An object's bytes, each read a request of its own: nothing stays open while somebody thinks."""

    def __init__(self, s3: "S3Client", bucket: str, key: str) -> None:
        self._s3, self._where, self._at = s3, (bucket, key), 0
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
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader gives one
        end = min(self._at + len(buffer), self._size)
        if self._at >= end:
            return 0
        bucket, key = self._where
        reply = self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={self._at}-{end - 1}")
        with reply["Body"] as body:
            content = body.read()
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _client(settings: Settings, endpoint: str) -> "S3Client":
    """Path-style, and checksums only where the protocol asks: other servers than Amazon's refuse them."""
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
