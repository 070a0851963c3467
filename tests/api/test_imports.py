"""Imports of files that are sent in parts to the object storage."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, BinaryIO

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Interval, func, select, text, type_coerce, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import make_app
from api.importer import Importer, TenantsInWork
from core.access.keys import Scope
from core.datasets import imports
from core.errors import Code, ProblemError
from core.infra import storage
from core.infra.storage import Storage
from core.tables import Import
from local.servers import Servers
from tests.api.conftest import Json, NewClient, let_leases_end, problem, stored

RIGHT = b'{"text": "a"}\n{"text": "b"}\n'
Sessions = sessionmaker[Session]


def begin(client: TestClient, size: int, **fields: Any) -> Json:
    answer = client.post("/imports", json={"name": "texts.jsonl", "bytes": size, **fields})
    assert answer.status_code == 201, answer.text
    row: Json = answer.json()
    assert answer.headers["location"] == f"/imports/{row['id']}"
    return row


def ready(client: TestClient, content: bytes) -> Json:
    """Upload a file that only has to be checked."""
    row = begin(client, len(content))
    send(client, row, content, 1)
    assert client.post(f"/imports/{row['id']}/complete").status_code == 202
    return row


def parts(client: TestClient, row: Json) -> list[Json]:
    data: list[Json] = client.get(f"/imports/{row['id']}/parts").json()["data"]
    return data


def send(client: TestClient, row: Json, content: bytes, *numbers: int) -> None:
    for part in parts(client, row):
        if part["number"] in numbers:
            start = (part["number"] - 1) * row["part_bytes"]
            assert httpx2.put(part["url"], content=content[start : start + part["bytes"]]).status_code == 200


def settled(app: FastAPI, client: TestClient, row: Json) -> Json:
    """Let an importer poll once, and return the import."""
    assert Importer(app.state.services).poll()
    result: Json = client.get(f"/imports/{row['id']}").json()
    return result


def claimed(sessions: Sessions) -> Import:
    """Claim the next import. Another importer can claim it when its lease has ended."""
    with sessions.begin() as session:
        row = imports.claim(session)
        assert row is not None
        assert lease(session, row) == imports.LEASE
        session.expunge(row)
    return row


def lease(session: Session, row: Import) -> timedelta:
    """Return the time until another importer can claim the import."""
    return session.scalars(select(type_coerce(Import.due_at - func.now(), Interval)).where(Import.id == row.id)).one()


def test_parts_become_the_same_dataset_as_one_upload_and_can_be_resumed(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
    lines = b"".join(b'{"text": "%09d%s"}\n' % (number, b"x" * 990) for number in range(11_000))
    upload = begin(client, len(lines), resume_key="k")
    assert (upload["status"], upload["parts"]) == ("receiving", 3)
    send(client, upload, lines, 1, 3)
    report = problem(client.post(f"/imports/{upload['id']}/complete"), 409, "conflict")
    assert report["errors"][0]["value"] == "incomplete or missing for the numbers 2"
    assert begin(client, len(lines), resume_key="k") == upload
    assert [part["received"] for part in parts(client, upload)] == [True, False, True]
    page = client.get(f"/imports/{upload['id']}/parts", params={"after": 1, "limit": 1}).json()
    assert ([(part["number"], part["received"]) for part in page["data"]], page["has_more"]) == ([(2, False)], True)
    page = client.get(f"/imports/{upload['id']}/parts", params={"after": 2, "limit": 1}).json()
    assert ([(part["number"], part["received"]) for part in page["data"]], page["has_more"]) == ([(3, True)], False)
    send(client, upload, lines, 2)
    for _ in range(2):
        answer = client.post(f"/imports/{upload['id']}/complete")
        assert (answer.status_code, answer.json()["status"]) == (202, "checking")
    result = settled(app, client, upload)
    assert result["status"] == "done"
    dataset = client.get(f"/datasets/{result['dataset_id']}").json()
    assert client.post("/datasets", files={"file": ("texts.jsonl", lines)}).json() == dataset
    assert stored(app) == [f"datasets/{dataset['sha256']}.jsonl"]
    assert begin(client, len(lines), resume_key="k")["id"] != upload["id"]


def test_a_link_takes_its_part_whole_and_nothing_else(app: FastAPI, client: TestClient) -> None:
    upload = begin(client, len(RIGHT))
    (part,) = parts(client, upload)
    assert httpx2.put(part["url"], content=RIGHT + b"x").status_code == 403
    assert httpx2.put(part["url"].replace("partNumber=1", "partNumber=2"), content=RIGHT).status_code == 403
    problem(client.post(f"/imports/{upload['id']}/complete"), 409, "conflict")


def test_the_invalid_lines_of_a_file_are_named_and_nothing_is_stored(app: FastAPI, client: TestClient) -> None:
    content = gzip.compress(RIGHT + b"broken\n")
    for skip, status in ((0, "failed"), (50, "done")):
        upload = begin(client, len(content), invalid_sample_skip_percentage=skip)
        send(client, upload, content, 1)
        client.post(f"/imports/{upload['id']}/complete")
        result = settled(app, client, upload)
        assert result["status"] == status
        if status == "failed":
            assert result["error"]["code"] == "invalid_dataset"
            assert [flaw["param"] for flaw in result["error"]["errors"]] == ["line 3"]
            assert stored(app) == []
    assert client.get(f"/datasets/{result['dataset_id']}").json()["skipped"] == 1
    file = client.get(f"/datasets/{result['dataset_id']}/file").json()
    assert (httpx2.get(file["url"]).content, file["size"]) == (RIGHT, len(RIGHT))


def test_a_resumed_upload_skips_the_percentage_of_the_newest_request(app: FastAPI, client: TestClient) -> None:
    content = RIGHT + b"broken\n"
    for first, then, status in ((0, 50, "done"), (50, 0, "failed")):
        upload = begin(client, len(content), resume_key="k", invalid_sample_skip_percentage=first)
        send(client, upload, content, 1)
        assert begin(client, len(content), resume_key="k", invalid_sample_skip_percentage=then) == upload
        assert all(part["received"] for part in parts(client, upload))
        client.post(f"/imports/{upload['id']}/complete")
        assert settled(app, client, upload)["status"] == status


def test_an_upload_that_is_checked_is_resumed_unless_the_percentage_differs(app: FastAPI, client: TestClient) -> None:
    upload = begin(client, len(RIGHT), resume_key="k")
    send(client, upload, RIGHT, 1)
    client.post(f"/imports/{upload['id']}/complete")
    assert begin(client, len(RIGHT), resume_key="k") == {**upload, "status": "checking"}
    assert [(part["received"], part["url"]) for part in parts(client, upload)] == [(True, None)]
    assert client.post(f"/imports/{upload['id']}/complete").status_code == 202
    assert begin(client, len(RIGHT), resume_key="k", invalid_sample_skip_percentage=1)["id"] != upload["id"]
    assert settled(app, client, upload)["status"] == "done"


def test_an_upload_whose_parts_were_joined_just_before_a_crash_can_be_completed(
    app: FastAPI, client: TestClient, sessions: Sessions
) -> None:
    upload, storage = begin(client, len(RIGHT), resume_key="k"), app.state.services.storage
    send(client, upload, RIGHT, 1)
    with sessions.begin() as session:
        key, upload_id = imports.key(upload["id"]), session.get_one(Import, upload["id"]).upload
    sent = storage.parts(key, upload_id)
    for _ in range(2):
        storage.finish_upload(key, upload_id, sent)  # the request that came second finds no upload, but the object
    assert begin(client, len(RIGHT), resume_key="k") == upload
    assert [(part["received"], part["url"]) for part in parts(client, upload)] == [(True, None)]
    assert client.post(f"/imports/{upload['id']}/complete").status_code == 202
    assert settled(app, client, upload)["status"] == "done"


@pytest.mark.parametrize("first", ["begin", "complete", "parts"])
def test_an_upload_whose_parts_the_storage_has_lost_begins_again(
    app: FastAPI, client: TestClient, sessions: Sessions, first: str
) -> None:
    upload = begin(client, len(RIGHT), resume_key="k")
    with sessions.begin() as session:
        upload_id = session.get_one(Import, upload["id"]).upload
    app.state.services.storage.abort_upload(imports.key(upload["id"]), upload_id)
    if first == "complete":
        assert client.post(f"/imports/{upload['id']}/complete").json()["status"] == "failed"
    elif first == "parts":
        assert [(part["received"], part["url"]) for part in parts(client, upload)] == [(False, None)]
    again = begin(client, len(RIGHT), resume_key="k")
    assert again["id"] != upload["id"]
    lost = client.get(f"/imports/{upload['id']}").json()
    assert (lost["status"], lost["error"]["code"]) == ("failed", "unavailable")
    send(client, again, RIGHT, 1)
    assert client.post(f"/imports/{again['id']}/complete").status_code == 202
    assert settled(app, client, again)["status"] == "done"


def test_a_key_that_may_only_read_gets_no_links(client: TestClient, new_client: NewClient) -> None:
    upload = begin(client, len(RIGHT))
    (part,) = parts(new_client("ours", Scope.READ), upload)
    assert (part["received"], part["url"]) == (False, None)
    assert parts(new_client("ours", Scope.WRITE), upload)[0]["url"]


def test_no_transaction_is_open_while_the_storage_begins_an_upload(
    app: FastAPI, client: TestClient, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, begin_upload, connections = app.state.services, Storage.begin_upload, list[int]()

    def counting(storage: Storage, key: str) -> str:
        connections.append(services.engine.pool.checkedout())
        return begin_upload(storage, key)

    monkeypatch.setattr(Storage, "begin_upload", counting)
    monkeypatch.setattr(imports, "MAX_ACTIVE", 1)
    upload = begin(client, 9)
    problem(client.post("/imports", json={"bytes": 9}), 409, "limit_reached")
    assert connections == [0, 0]
    found = servers.storage.client().list_multipart_uploads(Bucket=services.settings.s3_bucket).get("Uploads", [])
    assert [each["Key"] for each in found] == [imports.key(upload["id"])], "the refused upload was aborted"


def test_an_import_of_a_dead_importer_is_claimed_again(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    upload = begin(client, len(RIGHT))
    send(client, upload, RIGHT, 1)
    client.post(f"/imports/{upload['id']}/complete")
    dead = claimed(sessions)
    assert not Importer(app.state.services).poll()
    let_leases_end(sessions)
    assert settled(app, client, upload)["status"] == "done"
    with sessions.begin() as session:
        assert imports.lock_claimed(session, dead) is None


def test_an_import_that_never_works_fails(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    upload = begin(client, len(RIGHT))
    send(client, upload, RIGHT, 1)
    client.post(f"/imports/{upload['id']}/complete")
    for _ in range(imports.TRIES):
        claimed(sessions)
        let_leases_end(sessions)
    assert len(stored(app)) == 1
    result = settled(app, client, upload)
    assert (result["status"], result["error"]["code"]) == ("failed", "unavailable")
    assert stored(app) == []


def test_an_importer_that_lost_its_lease_keeps_the_file_for_the_next_one(
    app: FastAPI, client: TestClient, sessions: Sessions
) -> None:
    upload = ready(client, RIGHT)
    late = claimed(sessions)
    let_leases_end(sessions)
    current = claimed(sessions)
    with sessions.begin() as session:
        imports.renew(session, current)
        assert lease(session, current) == imports.LEASE
    Importer(app.state.services)._process(late)
    let_leases_end(sessions)
    with sessions.begin() as session:
        imports.renew(session, late)  # must not renew the lease of the next importer
    assert settled(app, client, upload)["status"] == "done"


def test_an_import_that_is_deleted_during_its_check_leaves_no_object(app: FastAPI, client: TestClient) -> None:
    class Deleting(Importer):
        @contextmanager
        def _file(self, row: Import) -> Iterator[BinaryIO]:
            with super()._file(row) as file:
                yield file
            assert client.delete(f"/imports/{row.id}").status_code == 200

    ready(client, RIGHT)
    assert Deleting(app.state.services).poll() == 1
    assert stored(app) == []
    dataset = client.post("/datasets", files={"file": ("texts.jsonl", RIGHT)}).json()
    ready(client, RIGHT)
    assert Deleting(app.state.services).poll() == 1
    assert stored(app) == [f"datasets/{dataset['sha256']}.jsonl"]


def test_tenants_take_turns_however_many_imports_each_has(
    client: TestClient, new_client: NewClient, sessions: Sessions
) -> None:
    theirs = new_client("theirs")
    for each, count in ((client, 3), (theirs, 2)):
        for _ in range(count):
            ready(each, RIGHT)
    served = []
    for _ in range(5):
        row = claimed(sessions)
        served.append(row.tenant)
        with sessions.begin() as session:
            imports.fail(session.get_one(Import, row.id), ProblemError(Code.INVALID_DATASET, "x"))
    assert served == ["ours", "theirs", "ours", "theirs", "ours"]


def test_claims_of_several_processes_run_one_after_the_other(client: TestClient, sessions: Sessions) -> None:
    ready(client, RIGHT)
    with sessions.begin() as session, sessions() as other:
        assert imports.claim(session)
        other.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            imports.claim(other)


def test_a_tenant_whose_imports_are_in_work_comes_last(
    client: TestClient, new_client: NewClient, sessions: Sessions
) -> None:
    for _ in range(4):
        ready(client, RIGHT)
    assert [claimed(sessions).tenant for _ in range(3)] == ["ours"] * 3
    theirs = new_client("theirs")
    for _ in range(3):
        ready(theirs, RIGHT)
    assert [claimed(sessions).tenant for _ in range(4)] == ["theirs"] * 3 + ["ours"]


def test_the_importers_of_a_process_work_for_different_tenants(
    app: FastAPI, client: TestClient, new_client: NewClient
) -> None:
    upload, in_work = ready(client, RIGHT), TenantsInWork()
    in_work.names.add("ours")
    assert Importer(app.state.services, in_work).poll() == 0
    ready(new_client("theirs"), RIGHT)
    assert Importer(app.state.services, in_work).poll() == 1
    assert in_work.names == {"ours"}
    in_work.names.clear()
    assert Importer(app.state.services, in_work).poll() == 1
    assert client.get(f"/imports/{upload['id']}").json()["status"] == "done"


def test_the_imports_of_a_tenant_count_together_against_its_limit(app: FastAPI, new_client: NewClient) -> None:
    limited = make_app(app.state.services.settings.model_copy(update={"tenant_bytes": 5 * len(RIGHT) // 2}))
    key = new_client("ours").headers["Authorization"]
    with TestClient(limited, headers={"Authorization": key}) as client:
        first, second = begin(client, len(RIGHT)), begin(client, len(RIGHT))
        body = {"name": "texts.jsonl", "bytes": len(RIGHT)}
        report = problem(client.post("/imports", json=body), 409, "limit_reached")
        assert f"they use {2 * len(RIGHT)}" in report["detail"]
        assert client.delete(f"/imports/{second['id']}").status_code == 200
        second = begin(client, len(RIGHT))
        for upload in (first, second):
            send(client, upload, RIGHT, 1)
            client.post(f"/imports/{upload['id']}/complete")
            assert settled(limited, client, upload)["status"] == "done", "an import does not count twice"
        assert begin(client, len(RIGHT))["status"] == "receiving", "the dataset counts once, and no import is left"


def test_a_deleted_import_leaves_no_part(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    pending = begin(client, len(RIGHT))
    send(client, pending, RIGHT, 1)
    (part,) = parts(client, pending)
    assert part["url"] is None
    with sessions.begin() as session:
        row = session.get_one(Import, pending["id"])
        key, upload = imports.key(row.id), row.upload
    assert client.delete(f"/imports/{pending['id']}").json()["id"] == pending["id"]
    problem(client.get(f"/imports/{pending['id']}"), 404, "not_found")
    assert app.state.services.storage.parts(key, upload) == {}


def test_unfinished_imports_are_bounded_and_expire(client: TestClient, sessions: Sessions) -> None:
    import_ids = [begin(client, 9)["id"] for _ in range(imports.MAX_ACTIVE)]
    problem(client.post("/imports", json={"bytes": 9}), 409, "limit_reached")
    with sessions.begin() as session:
        old = func.now() - imports.UPLOAD_EXPIRY - timedelta(hours=1)
        session.execute(update(Import).where(Import.id == import_ids[0]).values(created_at=old))
    with sessions.begin() as session:
        ((late, _),) = imports.late_uploads(session)
        imports.expire(session, late)
    assert late == import_ids[0]
    assert client.get(f"/imports/{import_ids[0]}").json()["error"]["code"] == "too_slow"
    page = client.get("/imports", params={"limit": 3}).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == (import_ids[:-4:-1], True)
    assert begin(client, 9)["status"] == "receiving"


def test_an_invalid_request_is_rejected(app: FastAPI, client: TestClient) -> None:
    most = app.state.services.settings.max_dataset_bytes
    bodies: list[tuple[Json, str]] = [
        ({}, "body"),
        ({"bytes": 9, "source": "s3://a-bucket/x.jsonl"}, "body"),
        ({"bytes": most + 1}, "bytes"),
        ({"bytes": 1 << 63, "resume_key": "k"}, "bytes"),
        ({"source": "hf://datasets/owner/name", "resume_key": "k"}, "body"),
        ({"source": "s3://another/x.jsonl"}, "source"),
        ({"source": f"s3://{app.state.services.settings.s3_bucket}/datasets/x.jsonl"}, "source"),
        ({"source": "file:///etc/passwd"}, "source"),
        ({"source": "https://example.com/x.jsonl"}, "source"),
        ({"source": "hf://datasets/owner/name/../x.jsonl"}, "source"),
        ({"source": "hf://datasets/../../x.jsonl"}, "source"),
        ({"source": "hf://datasets/owner/..@main/x.jsonl"}, "source"),
        ({"source": "hf://datasets/owner/name@../x.jsonl"}, "source"),
        ({"source": "hf://datasets/ownér/name/x.jsonl"}, "source"),
    ]
    for body, param in bodies:
        assert problem(client.post("/imports", json=body), 422, "invalid_request")["param"] == param
    assert client.get("/imports").json()["data"] == []
