"""Object storage on a real server."""

import io
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, EndpointConnectionError
from botocore.httpsession import URLLib3Session
from pydantic import SecretStr

from core.infra import storage as storage_module
from core.infra.clock import TOLERANCE
from core.infra.storage import ABORT_INCOMPLETE_UPLOADS, Storage, is_outage
from core.settings import Settings
from tests.serving import Quiet, serving

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import LifecycleRuleUnionTypeDef


def test_stored_bytes_are_read_back_unchanged(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # large enough for a multipart upload
    source, copy = tmp_path / "a", tmp_path / "b"
    source.write_bytes(content)
    storage.upload(source, "x/file")
    storage.upload(io.BytesIO(content), "x/stream")
    storage.put("x/bytes", content)
    assert storage.keys("x/") == ["x/bytes", "x/file", "x/stream"]
    for key in storage.keys("x/"):
        assert storage.read(key) == content
        storage.download(key, copy)
        assert copy.read_bytes() == content


class Stream(io.BytesIO):
    """A stream that cannot seek, so that its size is not known before it was read."""

    def seekable(self) -> bool:
        return False


def test_a_stream_is_sent_in_no_more_parts_than_s3_accepts(
    storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 100_000
    monkeypatch.setattr(storage_module, "PARTS", 2)
    monkeypatch.setattr(storage_module, "PART_BYTES", 8 << 20)
    for key, size, parts in (("few", len(content), 2), ("many", 1, 4)):
        storage.upload_stream(Stream(content), key, size)
        assert storage.read(key) == content
        tag = storage._s3.head_object(Bucket=settings.s3_bucket, Key=key)["ETag"]
        assert tag.strip('"').endswith(f"-{parts}")


def before_sending(storage: Storage, operation: str, act: Callable[[Any], None]) -> None:
    """Call `act` with each HTTP request of an operation before it is sent."""
    storage._s3.meta.events.register(f"before-send.s3.{operation}", lambda request, **_: act(request))


def lose_the_reply(storage: Storage, key: str, content: bytes) -> list[int]:
    """Lose the first reply about joined parts. Return a list that gets its status."""
    joined = list[int]()

    def lose(request: Any) -> None:
        if not joined:
            joined.append(URLLib3Session().send(request).status_code)
            storage.put(key, content)  # this server stores in an object from which upload it comes; others do not
            raise ConnectionClosedError(endpoint_url=request.url)

    before_sending(storage, "CompleteMultipartUpload", lose)
    return joined


@pytest.mark.parametrize("kind", ["file", "seekable", "stream"])
def test_an_upload_whose_last_reply_is_lost_has_succeeded(storage: Storage, tmp_path: Path, kind: str) -> None:
    content, key, begun = bytes(range(256)) * 40_000, "jobs/1/1/resume/0/run", list[str]()
    (tmp_path / "file").write_bytes(content)
    uploads: dict[str, Callable[[], None]] = {
        "file": lambda: storage.upload(tmp_path / "file", key),
        "seekable": lambda: storage.upload(io.BytesIO(content), key),
        "stream": lambda: storage.upload_stream(Stream(content), key, len(content)),
    }
    joined = lose_the_reply(storage, key, content)
    before_sending(storage, "CreateMultipartUpload", lambda request: begun.append(request.url))
    uploads[kind]()
    assert storage.read(key) == content
    assert (joined, len(begun)) == ([200], 1), "the object is not sent again, because joining may always be slow"


@pytest.mark.parametrize("other", [b"", b"something else"])
def test_an_upload_that_has_vanished_has_failed(storage: Storage, other: bytes) -> None:
    before_sending(storage, "CompleteMultipartUpload", lambda _: storage.abort_uploads("x"))
    if other:
        storage.put("x", other)
    with pytest.raises(ClientError, match="NoSuchUpload"):
        storage.upload(io.BytesIO(bytes(9 << 20)), "x")
    upload = storage.begin_upload("x")
    with pytest.raises(ClientError, match="NoSuchUpload"):
        storage.finish_upload("x", upload, {1: storage.upload_part("x", upload, 1, b"part")})


def test_a_storage_that_goes_away_after_it_lost_an_upload_is_an_outage(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise EndpointConnectionError(endpoint_url="http://storage")

    monkeypatch.setattr(storage, "modified", fail)
    upload = storage.begin_upload("x")
    part = storage.upload_part("x", upload, 1, b"part")
    storage.abort_uploads("x")
    with pytest.raises(EndpointConnectionError) as caught:
        storage.finish_upload("x", upload, {1: part})
    assert is_outage(caught.value)


def test_deleting_a_prefix_leaves_the_rest(storage: Storage) -> None:
    for key in ("jobs/1/1/a", "jobs/1/1/b/c", "jobs/1/2/a", "datasets/x"):
        storage.put(key, b"1")
    storage.delete(storage.keys("jobs/1/1/"))
    storage.delete(storage.keys("jobs/none/"))
    assert storage.keys("") == ["datasets/x", "jobs/1/2/a"]


def test_the_unfinished_uploads_of_a_prefix_are_aborted_and_others_stay(storage: Storage) -> None:
    uploads = {key: storage.begin_upload(key) for key in ("jobs/1/1/a", "jobs/1/2/b", "jobs/2/1/a", "imports/1")}
    parts = {key: {1: storage.upload_part(key, upload, 1, b"part")} for key, upload in uploads.items()}
    storage.abort_uploads("jobs/1/")
    left = {key for key, upload in uploads.items() if storage.parts(key, upload)}
    assert left == {"jobs/2/1/a", "imports/1"}
    for key in left:
        storage.finish_upload(key, uploads[key], parts[key])
        assert storage.read(key) == b"part"
        assert storage.size(key) == 4


class DeniesDeletion(Quiet, BaseHTTPRequestHandler):
    """Answers a deletion with 200 and lists the object that was not deleted, as S3 does."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = (
            b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>No.</Message></Error></DeleteResult>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_an_object_that_could_not_be_deleted_is_an_error_after_the_others_are_deleted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "DELETE_BATCH", 1)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), DeniesDeletion)) as server:
        local = Storage(settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{server.server_port}"}))
        requests = list[Any]()
        before_sending(local, "DeleteObjects", requests.append)
        with pytest.raises(ClientError, match="AccessDenied"):
            local.delete(["a", "b"])
    assert len(requests) == 2


def test_a_host_with_a_wrong_clock_signs_with_the_time_of_the_storage(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    for hours in (-30, 1):
        for call in (
            lambda: storage.upload(tmp_path / "large", "large"),
            lambda: storage.put("small", b"1"),
            lambda: storage.modified("large"),
            lambda: storage.download("large", tmp_path / "copy"),
            lambda: storage.keys(""),
            lambda: storage.delete(["small"]),
        ):
            storage.clock.offset = timedelta(hours=hours)
            call()
            assert abs(storage.clock.offset) < TOLERANCE
    assert storage.keys("") == ["large"]


def test_missing_permissions_do_not_change_the_clock_offset(settings: Settings) -> None:
    stranger = Storage(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    for _ in range(2):
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            stranger.put("x", b"1")
    assert stranger.clock.offset == timedelta()


def test_a_link_gives_access_to_its_object(storage: Storage) -> None:
    storage.put("x/größe.txt", b"hello")
    with urllib.request.urlopen(storage.link("x/größe.txt")) as answer:
        assert answer.read() == b"hello"


def test_a_link_uses_the_public_endpoint(settings: Settings) -> None:
    public = Storage(settings.model_copy(update={"s3_public_endpoint": "https://s3.example"}))
    assert public.link("a/b").startswith(f"https://s3.example/{settings.s3_bucket}/a/b?")


def test_ensure_bucket_is_idempotent(storage: Storage) -> None:
    storage.put("kept", b"1")
    storage.ensure_bucket()
    assert storage.keys("") == ["kept"]


def test_a_rule_for_incomplete_uploads_is_added_and_the_operators_rules_stay(
    storage: Storage, settings: Settings
) -> None:
    s3, bucket = storage._s3, settings.s3_bucket
    (ours,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert ours["AbortIncompleteMultipartUpload"] == ABORT_INCOMPLETE_UPLOADS["AbortIncompleteMultipartUpload"]
    theirs: LifecycleRuleUnionTypeDef = {
        "ID": "theirs",
        "Status": "Enabled",
        "Filter": {"Prefix": "other/"},
        "Expiration": {"Days": 9},
    }
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [theirs]})
    for _ in range(2):
        storage.ensure_bucket()
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [rule["ID"] for rule in rules] == ["theirs", ABORT_INCOMPLETE_UPLOADS["ID"]]


@pytest.mark.parametrize(
    ("theirs", "is_enough"),
    [
        ({"Status": "Enabled", "Filter": {}}, True),
        ({"Status": "Enabled", "Filter": {"Prefix": ""}}, True),
        ({"Status": "Enabled", "Prefix": ""}, True),
        ({"Status": "Disabled", "Filter": {"Prefix": ""}}, False),
        ({"Status": "Enabled", "Filter": {"Prefix": "logs/"}}, False),
        ({"Status": "Enabled", "Prefix": "logs/"}, False),
        ({"Status": "Enabled", "Filter": {"Tag": {"Key": "a", "Value": "b"}}}, False),
        ({"Status": "Enabled", "Filter": {"And": {"Prefix": "", "ObjectSizeGreaterThan": 1}}}, False),
    ],
)
def test_only_an_enabled_rule_for_all_incomplete_uploads_replaces_ours(
    storage: Storage, settings: Settings, theirs: Any, is_enough: bool
) -> None:
    s3, bucket = storage._s3, settings.s3_bucket
    rule = {"ID": "theirs", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 5}} | theirs
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    storage.ensure_bucket()
    rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rules == ([rule] if is_enough else [rule, ABORT_INCOMPLETE_UPLOADS])


def test_a_bucket_that_another_process_creates_at_the_same_moment_is_no_error(
    storage: Storage, settings: Settings
) -> None:
    class Late(Storage):
        """Looks for the bucket before the other process creates it."""

        def ping(self) -> None:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "HeadBucket")  # type: ignore[typeddict-item]

    Late(settings).ensure_bucket()


def test_an_unreachable_server_is_an_error_within_seconds(settings: Settings) -> None:
    with pytest.raises(BotoCoreError):
        Storage(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})).ping()
