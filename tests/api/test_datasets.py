"""Datasets over HTTP: upload, list, preview, delete."""

import gzip
import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, BinaryIO
from urllib.parse import unquote

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import make_app
from api.deps import TENANT_UPLOADS
from core.datasets.datasets import Content
from core.datasets.uploads import DatasetStore
from core.infra.storage import Storage
from tests.api.conftest import NewClient, problem, stored

RIGHT = b'{"text": "a"}\n{"text": "b"}\n'


def upload(client: TestClient, content: bytes, name: str = "texts.jsonl") -> Any:
    return client.post("/datasets", files={"file": (name, content)})


def test_a_right_file_is_stored_under_its_hash(app: FastAPI, client: TestClient) -> None:
    answer = upload(client, RIGHT)
    assert answer.status_code == 201
    row = answer.json()
    assert answer.headers["location"] == f"/datasets/{row['id']}"
    assert (row["name"], row["format"], row["records"], row["bytes"]) == ("texts.jsonl", "text", 2, len(RIGHT))
    assert stored(app) == [f"datasets/{row['sha256']}.jsonl"]
    assert app.state.services.storage.read(stored(app)[0]) == RIGHT
    assert client.get(answer.headers["location"]).json() == row


def test_equal_files_share_one_object_and_have_two_rows(app: FastAPI, client: TestClient) -> None:
    one, other = upload(client, RIGHT).json(), upload(client, RIGHT, "again.jsonl").json()
    assert one["id"] != other["id"]
    assert one["sha256"] == other["sha256"]
    assert len(stored(app)) == 1
    page = client.get("/datasets", params={"limit": 1}).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == ([other["id"]], True)
    rest = client.get("/datasets", params={"after": other["id"]}).json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == ([one["id"]], False)


def test_an_upload_that_is_sent_again_makes_no_second_dataset(client: TestClient, new_client: NewClient) -> None:
    with ThreadPoolExecutor(4) as pool:
        dataset_ids = {answer.json()["id"] for answer in pool.map(lambda _: upload(client, RIGHT), range(8))}
    assert [row["id"] for row in client.get("/datasets").json()["data"]] == list(dataset_ids)
    assert [entry["target"] for entry in client.get("/audit").json()["data"]] == list(dataset_ids)
    assert upload(new_client("theirs"), RIGHT).json()["id"] not in dataset_ids


def test_a_compressed_file_is_the_dataset_inside_it(app: FastAPI, client: TestClient) -> None:
    one, other = upload(client, RIGHT).json(), upload(client, gzip.compress(RIGHT), "texts.jsonl.gz").json()
    assert (other["sha256"], other["bytes"], other["name"]) == (one["sha256"], len(RIGHT), "texts.jsonl.gz")
    assert len(stored(app)) == 1


@pytest.mark.parametrize(
    ("name", "saved_as"),
    [
        ("texts.jsonl", "texts.jsonl"),
        ("texts.JSON.gz", "texts.jsonl"),
        ("größe 数据.parquet", "größe 数据.jsonl"),
        ("a; b='100%.zst", "a; b='100%.jsonl"),
        ("notes.v2", "notes.v2.jsonl"),
    ],
    ids=["plain", "compressed", "another script", "special characters", "unknown ending"],
)
def test_a_dataset_is_downloaded_again_as_plain_jsonl(client: TestClient, name: str, saved_as: str) -> None:
    row = upload(client, gzip.compress(RIGHT), name).json()
    file = client.get(f"/datasets/{row['id']}/file").json()
    assert (file["name"], file["size"], file["sha256"]) == (saved_as, len(RIGHT), row["sha256"])
    got = httpx2.get(file["url"])
    assert (got.content, hashlib.sha256(got.content).hexdigest()) == (RIGHT, file["sha256"])
    assert unquote(got.headers["content-disposition"].partition("filename*=UTF-8''")[2]) == saved_as
    client.delete(f"/datasets/{row['id']}")
    problem(client.get(f"/datasets/{row['id']}/file"), 404, "not_found")


def test_invalid_lines_are_skipped_up_to_the_allowed_percentage(app: FastAPI, client: TestClient) -> None:
    def sent(percentage: float) -> Any:
        params = {"invalid_sample_skip_percentage": percentage}
        return client.post("/datasets", params=params, files={"file": ("x.jsonl", b"broken\n" + RIGHT)})

    assert problem(sent(33), 422, "invalid_dataset")["param"] == "line 1"
    assert problem(sent(101), 422, "invalid_request")["param"] == "invalid_sample_skip_percentage"
    row = sent(34).json()
    assert (row["records"], row["skipped"]) == (2, 1)
    assert app.state.services.storage.read(*stored(app)) == RIGHT


@pytest.mark.parametrize(
    ("content", "param"),
    [(b'{"text": "a"}\n{"text": "b"}\n{"txt": "c"}\n', "line 3"), (b"", "file"), (b"PAR1\x00\xff", "file")],
    ids=["broken line", "empty", "another format"],
)
def test_a_wrong_file_is_refused_and_nothing_is_kept(
    content: bytes, param: str, app: FastAPI, client: TestClient
) -> None:
    report = problem(upload(client, content), 422, "invalid_dataset")
    assert report["errors"][0]["param"] == param
    assert stored(app) == []
    assert client.get("/datasets").json()["data"] == []


def test_a_file_name_of_any_script_is_kept_without_its_folders(client: TestClient) -> None:
    assert upload(client, RIGHT, "../größe 数据.jsonl").json()["name"] == "größe 数据.jsonl"


def test_a_form_without_the_file_is_refused(client: TestClient) -> None:
    problem(client.post("/datasets", files={"other": ("x", RIGHT)}), 422, "invalid_request")
    problem(client.post("/datasets", files=[("file", ("x", RIGHT)), ("file", ("y", RIGHT))]), 422, "invalid_request")
    problem(
        client.post("/datasets", content=b"x", headers={"Content-Type": "multipart/form-data"}), 422, "invalid_request"
    )
    torn = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(client.post("/datasets", content=b"--b\r\nnonsense", headers=torn), 422, "invalid_request")


PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\na\r\n--x--\r\n'
"""A form with one file."""


def test_a_form_with_an_unknown_charset_is_refused(client: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
    response = client.post("/datasets", content=PART, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["param"] == "Content-Type"


def test_uploads_leave_threads_to_other_requests_and_turns_to_other_tenants(
    app: FastAPI, client: TestClient, new_client: NewClient
) -> None:
    permits = threading.Semaphore(0)
    started: list[str] = []

    class Slow(Storage):
        def upload_stream(self, source: BinaryIO, key: str, size: int) -> None:
            started.append(key)
            assert permits.acquire(timeout=60)
            super().upload_stream(source, key, size)

    services = app.state.services
    slow = DatasetStore(services.settings, services.sessions, Slow(services.settings))
    app.state.services = replace(services, dataset_store=slow)
    with ThreadPoolExecutor(TENANT_UPLOADS + 1) as pool:
        uploads = [pool.submit(upload, client, RIGHT) for _ in range(TENANT_UPLOADS)]
        while len(started) < 3:
            time.sleep(0.01)
        assert client.get("/jobs").status_code == 200
        theirs = pool.submit(upload, new_client("theirs"), RIGHT)
        while len(started) < 4:
            time.sleep(0.01)
        assert not theirs.done()
        permits.release(50)
        assert {future.result().status_code for future in (*uploads, theirs)} == {201}


def test_an_upload_has_its_own_limit(app: FastAPI, new_client: NewClient) -> None:
    small = make_app(app.state.services.settings.model_copy(update={"max_upload_bytes": 3_000_000}))
    key = new_client("ours").headers["Authorization"]
    with TestClient(small, headers={"Authorization": key}) as client:
        line = b'{"text": "%s"}\n' % (b"x" * 999_000)
        assert upload(client, line + RIGHT + line).status_code == 201
        report = problem(upload(client, line * 4), 413, "too_large")
    assert "3000000" in report["detail"]


def test_a_dataset_is_deleted_once_no_job_needs_it(client: TestClient, dataset: str, job_id: str) -> None:
    path = f"/datasets/{dataset}"
    assert job_id in problem(client.delete(path), 409, "conflict")["detail"]
    client.post(f"/jobs/{job_id}/cancel")
    assert client.delete(path).json()["id"] == dataset
    for answer in (client.get(path), client.delete(path)):
        problem(answer, 404, "not_found")
    assert client.get(f"/jobs/{job_id}").json()["spec"]["dataset"] == dataset


def test_a_full_tenant_can_neither_upload_nor_create_a_job(app: FastAPI, new_client: NewClient) -> None:
    settings = app.state.services.settings.model_copy(update={"tenant_bytes": 3 * len(RIGHT) - 1})
    key = new_client("ours").headers["Authorization"]
    with TestClient(make_app(settings), headers={"Authorization": key}) as client:
        first = upload(client, RIGHT).json()["id"]
        assert upload(client, RIGHT.replace(b"a", b"c")).status_code == 201
        report = problem(upload(client, RIGHT.replace(b"a", b"d")), 409, "limit_reached")
        assert f"{3 * len(RIGHT) - 1} bytes" in report["detail"]
        assert len(stored(app)) == 2, "a rejected file is not stored"
        assert upload(client, RIGHT).json()["id"] == first
        short = {"evaluate": {"tokens": 8}, "repair": {"sequence_tokens": 8}, "prune": {"calibration": {"tokens": 8}}}
        body = {"model": "tiny", "dataset": first, "sparsity": 0.5, **short}
        assert client.post("/jobs", json=body).status_code == 202
        assert upload(client, RIGHT[:-1]).status_code == 201
        problem(client.post("/jobs", json=body), 409, "limit_reached")


def test_an_upload_that_exceeds_the_limit_only_after_it_was_stored_is_not_kept(
    app: FastAPI, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = app.state.services.settings.model_copy(update={"tenant_bytes": 2 * len(RIGHT) - 1})
    key, store = new_client("ours").headers["Authorization"], DatasetStore.store
    with TestClient(make_app(settings), headers={"Authorization": key}) as client:

        def store_while_another_upload_ends(self: DatasetStore, *arguments: Any, **options: Any) -> Content:
            content = store(self, *arguments, **options)
            monkeypatch.setattr(DatasetStore, "store", store)
            assert upload(client, RIGHT).status_code == 201
            return content

        monkeypatch.setattr(DatasetStore, "store", store_while_another_upload_ends)
        problem(upload(client, RIGHT.replace(b"a", b"c")), 409, "limit_reached")
        assert len(stored(app)) == 1


def test_another_tenants_dataset_is_not_there(client: TestClient, new_client: NewClient, dataset: str) -> None:
    stranger = new_client("theirs")
    for path in ("", "/file"):
        problem(stranger.get(f"/datasets/{dataset}{path}"), 404, "not_found")
    assert stranger.get("/datasets").json()["data"] == []
    body = {"model": "tiny", "dataset": dataset, "sparsity": 0.5}
    assert problem(stranger.post("/jobs", json=body), 422, "invalid_request")["param"] == "dataset"


def test_nobody_without_a_key_can_fill_the_disk(app: FastAPI, client: TestClient) -> None:
    read = []

    async def receive() -> Any:
        read.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 401

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    scope = {"type": "http", "method": "POST", "path": "/datasets", "query_string": b"", "headers": headers}
    assert client.portal is not None
    client.portal.call(app, scope, receive, send)
    assert read == []


def test_an_upload_that_the_client_aborts_logs_no_error(
    app: FastAPI, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    messages = iter([{"type": "http.request", "body": b"--b", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    key = client.headers["Authorization"].encode()
    headers = [(b"content-type", b"multipart/form-data; boundary=b"), (b"authorization", key)]
    scope = {"type": "http", "method": "POST", "path": "/datasets", "query_string": b"", "headers": headers}
    assert client.portal is not None
    client.portal.call(app, scope, receive, send)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_preview_shows_what_a_model_would_be_trained_on(client: TestClient) -> None:
    content = b"".join(b'{"prompt": "ask a ", "completion": "b %d"}\n' % number for number in range(8000))
    row = upload(client, content).json()
    answer = client.get(f"/datasets/{row['id']}/preview", params={"model": "tiny", "limit": 1})
    assert answer.status_code == 200, answer.text
    preview = answer.json()
    parts = [{"text": "ask a", "trained": False}, {"text": " b <unk> <eos>", "trained": True}]
    assert preview["records"] == [{"tokens": 5, "trained_tokens": 3, "parts": parts, "cut": False}]
    assert (preview["model"], preview["exact"]) == ("tiny", False)
    assert 5000 < preview["counted_records"] < 8000
    assert preview["tokens"] == pytest.approx(5 * 8000, rel=0.02)
    assert preview["trained_tokens"] == pytest.approx(3 * 8000, rel=0.02)
    small = upload(client, content[:420]).json()
    preview = client.get(f"/datasets/{small['id']}/preview", params={"model": "tiny"}).json()
    assert (len(preview["records"]), preview["tokens"], preview["exact"]) == (5, 5 * small["records"], True)


def test_a_preview_that_cannot_be_made_is_an_error(client: TestClient, dataset: str) -> None:
    address = f"/datasets/{dataset}/preview"
    assert problem(client.get(address), 422, "invalid_request")["param"] == "model"
    assert problem(client.get(address, params={"model": "none"}), 422, "model_not_found")["param"] == "model"
    assert problem(client.get(address, params={"model": "a\0"}), 422, "invalid_request")["param"] == "model"
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    other = {"messages": [*chat["messages"], *chat["messages"]]}
    row = upload(client, f"{json.dumps(chat)}\n{json.dumps(other)}\n".encode()).json()
    report = problem(client.get(f"/datasets/{row['id']}/preview", params={"model": "tiny"}), 422, "model_refused")
    assert "must have a chat template" in report["detail"]
    assert report["errors"][0]["rule"].endswith("as prompt and completion.")
