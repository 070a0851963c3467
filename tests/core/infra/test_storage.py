"""Object storage, against a real server."""

import io
import threading
import urllib.request
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from core.infra.clock import NEAR
from core.infra.storage import TORN, Storage
from core.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import LifecycleRuleUnionTypeDef


def test_what_is_stored_comes_back_to_the_last_bit(storage: Storage, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # above the size from which parts are sent
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


def test_deleting_a_prefix_leaves_the_rest(storage: Storage) -> None:
    for key in ("jobs/1/1/a", "jobs/1/1/b/c", "jobs/1/2/a", "datasets/x"):
        storage.put(key, b"1")
    storage.delete(storage.keys("jobs/1/1/"))
    storage.delete(storage.keys("jobs/none/"))
    assert storage.keys("") == ["datasets/x", "jobs/1/2/a"]


class Refusing(BaseHTTPRequestHandler):
    """Answers 200 to a deletion, and names in the answer what it has not deleted, as S3 does."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        told = (
            b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>No.</Message></Error></DeleteResult>"
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_what_could_not_be_deleted_is_not_taken_as_deleted(settings: Settings) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{server.server_port}"})
        with pytest.raises(ClientError, match="AccessDenied"):
            Storage(here).delete(["a"])
        server.shutdown()


def test_a_host_whose_clock_is_off_signs_with_the_time_of_the_storage(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    for hours in (-30, 1):
        for act in (
            lambda: storage.upload(tmp_path / "large", "large"),
            lambda: storage.put("small", b"1"),
            lambda: storage.modified("large"),
            lambda: storage.download("large", tmp_path / "copy"),
            lambda: storage.keys(""),
            lambda: storage.delete(["small"]),
        ):
            storage.clock.ahead = timedelta(hours=hours)
            act()
            assert abs(storage.clock.ahead) < NEAR
    assert storage.keys("") == ["large"]


def test_rights_that_are_missing_are_no_matter_of_time(settings: Settings) -> None:
    stranger = Storage(settings.model_copy(update={"s3_secret_key": SecretStr("wrong")}))
    for _ in range(2):
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            stranger.put("x", b"1")
    assert stranger.clock.ahead == timedelta()


def test_a_link_opens_its_object_to_whoever_holds_it(storage: Storage) -> None:
    storage.put("x/größe.txt", b"hello")
    with urllib.request.urlopen(storage.link("x/größe.txt")) as answer:
        assert answer.read() == b"hello"


def test_a_link_names_the_public_address(settings: Settings) -> None:
    public = Storage(settings.model_copy(update={"s3_public_endpoint": "https://s3.example"}))
    assert public.link("a/b").startswith(f"https://s3.example/{settings.s3_bucket}/a/b?")


def test_ensuring_a_bucket_twice_is_no_error(storage: Storage) -> None:
    storage.put("kept", b"1")
    storage.ensure_bucket()
    assert storage.keys("") == ["kept"]


def test_parts_of_uploads_that_broke_off_are_dropped_by_a_rule_beside_the_operators_own(
    storage: Storage, settings: Settings
) -> None:
    s3, bucket = storage._s3, settings.s3_bucket
    (ours,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert ours["AbortIncompleteMultipartUpload"] == TORN["AbortIncompleteMultipartUpload"]
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
    assert [rule["ID"] for rule in rules] == ["theirs", TORN["ID"]]


def test_a_bucket_that_another_process_made_at_the_same_moment_is_no_error(
    storage: Storage, settings: Settings
) -> None:
    class Late(Storage):
        """Looks for the bucket before the other process makes it."""

        def ping(self) -> None:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "HeadBucket")  # type: ignore[typeddict-item]

    Late(settings).ensure_bucket()


def test_a_server_that_is_not_there_is_an_error_within_seconds(settings: Settings) -> None:
    with pytest.raises(BotoCoreError):
        Storage(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})).ping()
