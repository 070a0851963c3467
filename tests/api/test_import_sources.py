"""Imports of sources that the service fetches: objects in S3 buckets, and datasets on the model hub."""

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.app import make_app
from api.importer import Importer
from core.datasets import imports
from core.infra.storage import Storage
from core.settings import Settings
from local.servers import Servers
from seft.models import hub_files
from tests.api.conftest import NewClient, let_leases_end, problem
from tests.api.test_imports import RIGHT, Sessions, parts, settled
from tests.hub import COMMIT, Repo, hub, use_hub


@pytest.fixture
def opened(app: FastAPI, servers: Servers, new_client: NewClient) -> Iterator[tuple[FastAPI, TestClient, Any]]:
    """A service that may read a prefix of another bucket, its client, and a client of that bucket."""
    s3 = servers.storage.client()
    s3.create_bucket(Bucket="test-inbox")
    buckets = {"dataset_buckets": ["test-inbox/open/"]}
    service = make_app(app.state.services.settings.model_copy(update=buckets))
    with TestClient(service, headers={"Authorization": new_client("ours").headers["Authorization"]}) as client:
        yield service, client, s3
    for item in s3.list_objects_v2(Bucket="test-inbox").get("Contents", []):
        s3.delete_object(Bucket="test-inbox", Key=item["Key"])
    s3.delete_bucket(Bucket="test-inbox")


def test_an_object_of_an_opened_place_becomes_a_dataset(opened: tuple[FastAPI, TestClient, Any]) -> None:
    app, client, s3 = opened
    s3.put_object(Bucket="test-inbox", Key="open/texts.jsonl.gz", Body=gzip.compress(RIGHT))
    s3.put_object(Bucket="test-inbox", Key="shut/texts.jsonl", Body=RIGHT)
    for key in ("shut/texts.jsonl", "opened.jsonl"):
        report = problem(client.post("/imports", json={"source": f"s3://test-inbox/{key}"}), 422, "invalid_request")
        assert "test-inbox/open/" in report["errors"][0]["way_out"]
    for key in ("../shut/texts.jsonl", "./texts.jsonl", "a/../../shut/texts.jsonl", "a//b", "a\\..\\b", "..", "a/"):
        report = problem(
            client.post("/imports", json={"source": f"s3://test-inbox/open/{key}"}), 422, "invalid_request"
        )
        assert "must have no backslash, and no part" in report["detail"]
    row = client.post("/imports", json={"source": "s3://test-inbox/open/texts.jsonl.gz"}).json()
    assert (row["status"], row["parts"], parts(client, row)) == ("checking", None, [])
    dataset = client.get(f"/datasets/{settled(app, client, row)['dataset_id']}").json()
    assert (dataset["name"], dataset["bytes"]) == ("texts.jsonl.gz", len(RIGHT))
    row = client.post("/imports", json={"source": "s3://test-inbox/open/none.jsonl"}).json()
    assert settled(app, client, row)["error"]["code"] == "not_found"


def test_the_own_bucket_cannot_be_opened(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="must not contain SEFT_S3_BUCKET"):
        Settings.model_validate(settings.model_dump() | {"dataset_buckets": [f"{settings.s3_bucket}/inbox"]})


class Archive(Storage):
    """Answers HEAD and refuses GET, as S3 does for an object in an archive."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._s3.meta.events.register("before-send.s3.GetObject", self._refuse)  # type: ignore[arg-type]

    def _refuse(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        content = b"<Error><Code>InvalidObjectState</Code></Error>"
        return AWSResponse(request.url, 403, HTTPHeaders(), SimpleNamespace(stream=lambda: iter([content])))


def test_an_object_that_answers_head_and_refuses_get_is_named_at_once(opened: tuple[FastAPI, TestClient, Any]) -> None:
    app, client, s3 = opened
    s3.put_object(Bucket="test-inbox", Key="open/texts.jsonl", Body=RIGHT)
    source = "s3://test-inbox/open/texts.jsonl"
    row = client.post("/imports", json={"source": source}).json()
    services = app.state.services
    assert Importer(replace(services, storage=Archive(services.settings))).poll()
    error = client.get(f"/imports/{row['id']}").json()["error"]
    assert (error["code"], error["errors"][0]["param"], error["errors"][0]["value"]) == ("not_found", "source", source)


def test_a_source_that_is_too_large_is_not_read(
    opened: tuple[FastAPI, TestClient, Any], hub_datasets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, client, s3 = opened
    s3.put_object(Bucket="test-inbox", Key="open/texts.jsonl", Body=RIGHT)
    limited = app.state.services.settings.model_copy(update={"max_dataset_bytes": len(RIGHT) - 1})
    services = replace(app.state.services, settings=limited, storage=Archive(limited))
    for source in ("s3://test-inbox/open/texts.jsonl", "hf://datasets/owner/one", "hf://datasets/owner/two/a.jsonl"):
        row = client.post("/imports", json={"source": source}).json()
        assert Importer(services).poll()
        error = client.get(f"/imports/{row['id']}").json()["error"]
        assert (error["code"], error["errors"][0]["value"]) == ("invalid_request", f"{len(RIGHT)} bytes")


@pytest.fixture
def hub_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub with datasets."""
    folders = {
        "one": ["data.jsonl", "README.md"],
        "lines": ["data.ndjson"],
        "two": ["a.jsonl", "b.jsonl"],
        "none": ["README.md"],
        "gated": ["data.jsonl"],
        "parquet": ["data.jsonl"],
    }
    for name, files in folders.items():
        (folder := tmp_path / name).mkdir()
        for file in files:
            (folder / file).write_bytes(RIGHT)
    repos = {f"owner/{name}": Repo(tmp_path / name, gated=name == "gated") for name in folders if name != "parquet"}
    repos["owner/two@refs%2Fconvert%2Fparquet"] = Repo(tmp_path / "parquet", head="c0ffee")
    with hub(repos) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield


def test_a_file_of_a_hub_dataset_becomes_a_dataset(
    app: FastAPI, client: TestClient, hub_datasets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source, name in {
        "owner/one": "one",
        "owner/lines": "lines",
        f"owner/one@{COMMIT}/data.jsonl": "data.jsonl",
        "owner/two/b.jsonl": "b.jsonl",
        "owner/two@refs/convert/parquet": "two",
        "owner/two@refs/convert/parquet/data.jsonl": "data.jsonl",
    }.items():
        row = client.post("/imports", json={"source": f"hf://datasets/{source}"}).json()
        result = settled(app, client, row)
        assert result["error"] is None
        assert client.get(f"/datasets/{result['dataset_id']}").json()["name"] == name
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    row = client.post("/imports", json={"source": "hf://datasets/owner/one"}).json()
    assert settled(app, client, row)["status"] == "checking", "an unreachable hub is tried again later"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("two", ("invalid_request", "2 data files: a.jsonl, b.jsonl", "such as hf://datasets/owner/two/a.jsonl")),
        (f"two@{COMMIT}", ("invalid_request", "2 data files: a.jsonl, b.jsonl", f"two@{COMMIT}/a.jsonl")),
        ("two/c.jsonl", ("invalid_request", "hf://datasets/owner/two/c.jsonl", "Check the name of the file.")),
        ("none", ("invalid_request", "hf://datasets/owner/none, which has none", "Choose a dataset with a file")),
        ("absent", ("not_found", "hf://datasets/owner/absent", "Check the name. For a private dataset, set")),
        ("one@nowhere", ("not_found", "hf://datasets/owner/one@nowhere", "Check the revision.")),
        ("one@nowhere/data.jsonl", ("not_found", "hf://datasets/owner/one@nowhere/data.jsonl", "Check the revision.")),
        ("gated", ("not_found", "hf://datasets/owner/gated", "Accept its terms on the hub")),
    ],
)
def test_a_hub_source_that_cannot_be_fetched_is_named_with_a_way_out(
    app: FastAPI, client: TestClient, hub_datasets: None, source: str, expected: tuple[str, str, str]
) -> None:
    code, value, way_out = expected
    row = client.post("/imports", json={"source": f"hf://datasets/owner/{source}"}).json()
    error = settled(app, client, row)["error"]
    assert (error["code"], error["errors"][0]["value"]) == (code, value)
    assert way_out in error["errors"][0]["way_out"]


def test_the_list_of_files_of_a_hub_dataset_has_a_limit(
    app: FastAPI, client: TestClient, hub_datasets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "MAX_LISTING_BYTES", 100)
    row = client.post("/imports", json={"source": "hf://datasets/owner/one"}).json()
    (flaw,) = settled(app, client, row)["error"]["errors"]
    assert flaw["way_out"] == "Name the file: hf://datasets/owner/one/FILE"
    row = client.post("/imports", json={"source": "hf://datasets/owner/one/data.jsonl"}).json()
    assert settled(app, client, row)["status"] == "done"


def test_a_hub_import_survives_a_storage_that_rejects_the_credentials(
    app: FastAPI, client: TestClient, sessions: Sessions, hub_datasets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object, **__: object) -> None:
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject")  # type: ignore[typeddict-item]

    row = client.post("/imports", json={"source": "hf://datasets/owner/one"}).json()
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "upload_stream", reject)
        for _ in range(imports.TRIES + 1):
            assert Importer(app.state.services).poll()
            let_leases_end(sessions)
    assert settled(app, client, row)["status"] == "done"
