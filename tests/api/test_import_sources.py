"""Imports of sources that the service fetches: objects in S3 buckets, and datasets on the model hub."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.app import make_app
from core.settings import Settings
from local.servers import Servers
from tests.api.conftest import NewClient, problem
from tests.api.test_imports import RIGHT, Sessions, parts, settled
from tests.hub import COMMIT, Repo, hub


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


def test_a_file_of_a_hub_dataset_becomes_a_dataset(
    app: FastAPI, client: TestClient, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, files in {"one": ["data.jsonl", "README.md"], "two": ["a.jsonl", "b.jsonl"]}.items():
        (folder := tmp_path / name).mkdir()
        for file in files:
            (folder / file).write_bytes(RIGHT)
    repos = {f"owner/{name}": Repo(tmp_path / name) for name in ("one", "two")}
    refusals = {
        "owner/two": ("invalid_request", "2 data files: a.jsonl, b.jsonl"),
        "owner/two/c.jsonl": ("invalid_request", "c.jsonl"),
        "owner/none": ("not_found", "owner/none"),
        "owner/one@nowhere": ("not_found", "owner/one"),
    }
    with hub(repos) as endpoint:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        for source, name in {
            "owner/one": "one",
            f"owner/one@{COMMIT}/data.jsonl": "data.jsonl",
            "owner/two/b.jsonl": "b.jsonl",
        }.items():
            row = client.post("/imports", json={"source": f"hf://datasets/{source}"}).json()
            result = settled(app, client, row)
            assert result["error"] is None
            assert client.get(f"/datasets/{result['dataset_id']}").json()["name"] == name
        for source, (code, value) in refusals.items():
            row = client.post("/imports", json={"source": f"hf://datasets/{source}"}).json()
            error = settled(app, client, row)["error"]
            assert (error["code"], error["errors"][0]["value"]) == (code, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    row = client.post("/imports", json={"source": "hf://datasets/owner/one"}).json()
    assert settled(app, client, row)["status"] == "checking", "an unreachable hub is tried again later"
