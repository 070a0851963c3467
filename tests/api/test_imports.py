"""Datasets that come in parts, straight into the object storage, and those that the service fetches."""

import gzip
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import make_app
from api.importer import Importer
from core.datasets import imports
from core.settings import Settings
from core.tables import Import
from local.servers import Servers
from tests.api.conftest import Json, NewClient, problem
from tests.hub import COMMIT, Repo, hub

RIGHT = b'{"text": "a"}\n{"text": "b"}\n'
Sessions = sessionmaker[Session]


def begin(client: TestClient, size: int, **more: Any) -> Json:
    answer = client.post("/imports", json={"name": "texts.jsonl", "bytes": size, **more})
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    assert answer.headers["location"] == f"/imports/{made['id']}"
    return made


def parts(client: TestClient, begun: Json) -> list[Json]:
    data: list[Json] = client.get(f"/imports/{begun['id']}/parts").json()["data"]
    return data


def send(client: TestClient, begun: Json, content: bytes, *numbers: int) -> None:
    for part in parts(client, begun):
        if part["number"] in numbers:
            start = (part["number"] - 1) * begun["part_bytes"]
            assert httpx2.put(part["url"], content=content[start : start + part["bytes"]]).status_code == 200


def settled(app: FastAPI, client: TestClient, begun: Json) -> Json:
    """What an import became, once an importer has gone round."""
    assert Importer(app.state.services).round()
    found: Json = client.get(f"/imports/{begun['id']}").json()
    return found


def stored(app: FastAPI) -> list[str]:
    keys: list[str] = app.state.services.storage.keys("")
    return keys


def test_parts_become_the_dataset_that_one_request_makes_and_go_on_where_they_were(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "PART_BYTES", 5 << 20)
    lines = b"".join(b'{"text": "%09d%s"}\n' % (number, b"x" * 990) for number in range(11_000))
    begun = begin(client, len(lines), resume_key="k")
    assert (begun["status"], begun["parts"]) == ("receiving", 3)
    send(client, begun, lines, 1, 3)
    report = problem(client.post(f"/imports/{begun['id']}/complete"), 409, "conflict")
    assert report["errors"][0]["value"] == "without 2"
    assert begin(client, len(lines), resume_key="k") == begun
    assert [part["received"] for part in parts(client, begun)] == [True, False, True]
    send(client, begun, lines, 2)
    for _ in range(2):
        answer = client.post(f"/imports/{begun['id']}/complete")
        assert (answer.status_code, answer.json()["status"]) == (202, "checking")
    found = settled(app, client, begun)
    assert found["status"] == "done"
    made = client.get(f"/datasets/{found['dataset_id']}").json()
    assert client.post("/datasets", files={"file": ("texts.jsonl", lines)}).json() == made
    assert stored(app) == [f"datasets/{made['sha256']}.jsonl"]
    assert begin(client, len(lines), resume_key="k")["id"] != begun["id"]


def test_a_link_takes_its_part_whole_and_nothing_else(app: FastAPI, client: TestClient) -> None:
    begun = begin(client, len(RIGHT))
    (part,) = parts(client, begun)
    assert httpx2.put(part["url"], content=RIGHT + b"x").status_code == 403
    assert httpx2.put(part["url"].replace("partNumber=1", "partNumber=2"), content=RIGHT).status_code == 403
    problem(client.post(f"/imports/{begun['id']}/complete"), 409, "conflict")


def test_a_file_that_is_no_dataset_is_told_line_by_line_and_nothing_is_kept(app: FastAPI, client: TestClient) -> None:
    content = gzip.compress(RIGHT + b"broken\n")
    for skip, status in ((0, "failed"), (50, "done")):
        begun = begin(client, len(content), invalid_sample_skip_percentage=skip)
        send(client, begun, content, 1)
        client.post(f"/imports/{begun['id']}/complete")
        found = settled(app, client, begun)
        assert found["status"] == status
        if status == "failed":
            assert found["error"]["code"] == "invalid_dataset"
            assert [flaw["param"] for flaw in found["error"]["errors"]] == ["line 3"]
            assert stored(app) == []
    assert client.get(f"/datasets/{found['dataset_id']}").json()["skipped"] == 1


def test_an_import_whose_importer_died_is_taken_again_and_the_dead_one_changes_nothing(
    app: FastAPI, client: TestClient, sessions: Sessions
) -> None:
    begun = begin(client, len(RIGHT))
    send(client, begun, RIGHT, 1)
    client.post(f"/imports/{begun['id']}/complete")
    with sessions.begin() as session:
        dead = imports.claim(session)
        assert dead is not None
        session.expunge(dead)
    assert not Importer(app.state.services).round()
    let_leases_end(sessions)
    assert settled(app, client, begun)["status"] == "done"
    with sessions.begin() as session:
        assert imports.held(session, dead) is None


def test_what_never_works_is_given_up(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    begun = begin(client, len(RIGHT))
    send(client, begun, RIGHT, 1)
    client.post(f"/imports/{begun['id']}/complete")
    for _ in range(imports.TRIES):
        with sessions.begin() as session:
            assert imports.claim(session)
        let_leases_end(sessions)
    with sessions.begin() as session:
        assert imports.claim(session) is None
    found = client.get(f"/imports/{begun['id']}").json()
    assert (found["status"], found["error"]["code"]) == ("failed", "unavailable")


def test_an_import_that_is_given_up_leaves_no_part(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    begun = begin(client, len(RIGHT))
    send(client, begun, RIGHT, 1)
    (part,) = parts(client, begun)
    assert part["url"] is None
    with sessions.begin() as session:
        row = session.get_one(Import, begun["id"])
        key, upload = imports.key(row.id), row.upload
    assert client.delete(f"/imports/{begun['id']}").json()["id"] == begun["id"]
    problem(client.get(f"/imports/{begun['id']}"), 404, "not_found")
    assert app.state.services.storage.parts(key, upload) == {}


def test_unfinished_imports_are_bounded_and_expire(client: TestClient, sessions: Sessions) -> None:
    begun = [begin(client, 9)["id"] for _ in range(imports.MOST)]
    problem(client.post("/imports", json={"bytes": 9}), 409, "limit_reached")
    with sessions.begin() as session:
        old = func.now() - imports.UNFINISHED - timedelta(hours=1)
        session.execute(update(Import).where(Import.id == begun[0]).values(created_at=old))
        imports.expire(session)
    assert client.get(f"/imports/{begun[0]}").json()["error"]["code"] == "too_slow"
    page = client.get("/imports", params={"limit": 3}).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == (begun[:-4:-1], True)
    assert begin(client, 9)["status"] == "receiving"


def test_a_request_that_cannot_work_is_refused(app: FastAPI, client: TestClient) -> None:
    most = app.state.services.settings.max_dataset_bytes
    bodies: list[tuple[Json, str]] = [
        ({}, "body"),
        ({"bytes": 9, "source": "s3://a-bucket/x.jsonl"}, "body"),
        ({"bytes": most + 1}, "bytes"),
        ({"bytes": 1 << 63, "resume_key": "k"}, "bytes"),
        ({"source": "s3://another/x.jsonl"}, "source"),
        ({"source": f"s3://{app.state.services.settings.s3_bucket}/datasets/x.jsonl"}, "source"),
        ({"source": "file:///etc/passwd"}, "source"),
        ({"source": "https://example.com/x.jsonl"}, "source"),
    ]
    for body, param in bodies:
        assert problem(client.post("/imports", json=body), 422, "invalid_request")["param"] == param
    assert client.get("/imports").json()["data"] == []


@pytest.fixture
def opened(app: FastAPI, servers: Servers, new_client: NewClient) -> Iterator[tuple[FastAPI, TestClient, Any]]:
    """A service that may read a part of another bucket, its client, and a client of that bucket."""
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
    begun = client.post("/imports", json={"source": "s3://test-inbox/open/texts.jsonl.gz"}).json()
    assert (begun["status"], begun["parts"], parts(client, begun)) == ("checking", None, [])
    made = client.get(f"/datasets/{settled(app, client, begun)['dataset_id']}").json()
    assert (made["name"], made["bytes"]) == ("texts.jsonl.gz", len(RIGHT))
    begun = client.post("/imports", json={"source": "s3://test-inbox/open/none.jsonl"}).json()
    assert settled(app, client, begun)["error"]["code"] == "not_found"


def test_the_own_bucket_cannot_be_opened(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="must not contain s3_bucket"):
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
        "owner/two": ("invalid_request", "2: a.jsonl, b.jsonl"),
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
            begun = client.post("/imports", json={"source": f"hf://datasets/{source}"}).json()
            found = settled(app, client, begun)
            assert found["error"] is None
            assert client.get(f"/datasets/{found['dataset_id']}").json()["name"] == name
        for source, (code, value) in refusals.items():
            begun = client.post("/imports", json={"source": f"hf://datasets/{source}"}).json()
            error = settled(app, client, begun)["error"]
            assert (error["code"], error["errors"][0]["value"]) == (code, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    begun = client.post("/imports", json={"source": "hf://datasets/owner/one"}).json()
    assert settled(app, client, begun)["status"] == "checking", "a hub that is away is asked again later"


def let_leases_end(sessions: Sessions) -> None:
    with sessions.begin() as session:
        held = update(Import).where(Import.due_at.is_not(None))
        session.execute(held.values(due_at=func.now() - timedelta(seconds=1)))
