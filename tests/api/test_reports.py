"""Events, metrics and checkpoints over HTTP."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from fastapi import FastAPI
from httpx2 import Client
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import make_app
from core.jobs import attempts
from core.jobs.attempts import Attempt
from tests.api.conftest import Json, finish, problem, serving
from tests.waiting import wait_for

Sessions = sessionmaker[Session]
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def other_live(app: FastAPI, client: TestClient) -> Iterator[Client]:
    """A client of another server over the same database."""
    other = make_app(app.state.services.settings)
    with serving(other, client) as connected:
        yield connected
    other.state.services.engine.dispose()


def test_events_come_in_order_and_in_pages(client: TestClient, attempt: Attempt, sessions: Sessions) -> None:
    with sessions.begin() as session:
        attempts.add_event(session, attempt, "evolved", {"grown": 5})
    path = f"/jobs/{attempt.job_id}/events"
    page = client.get(path).json()
    assert [event["type"] for event in page["data"]] == ["job.created", "job.claimed", "evolved"]
    assert (page["data"][2]["data"], page["data"][2]["attempt"]) == ({"grown": 5}, 1)
    first = client.get(path, params={"limit": 1}).json()
    assert first["has_more"]
    rest = client.get(path, params={"after": first["data"][0]["id"]}).json()
    assert first["data"] + rest["data"] == page["data"]
    assert not rest["has_more"]


def test_a_page_of_events_holds_few_of_a_model_with_many_layers(
    client: TestClient, attempt: Attempt, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.jobs.reports.PAGE_LAYERS", 5)
    with sessions.begin() as session:
        for step, layers in ((1, 3), (2, 2), (3, 1), (4, 9), (5, 1)):
            data = {"step": step, "layers": {str(n): {"grown": 1} for n in range(layers)}}
            attempts.record_evolution(session, attempt, data)
    pages, page = list[list[int]](), Json(has_more=True, data=[{"id": 0}])
    while page["has_more"]:
        after = page["data"][-1]["id"]
        page = client.get(f"/jobs/{attempt.job_id}/events", params={"after": after}).json()
        pages.append([event["data"].get("step", 0) for event in page["data"]])
    assert pages == [[0, 0, 1, 2], [3], [4], [5]]


def test_a_stream_sends_all_events_of_an_ended_job_however_many_pages_they_fill(
    live: Client, attempt: Attempt, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.jobs.reports.PAGE_LAYERS", 1)
    with sessions.begin() as session:
        for step in (1, 2, 3):
            attempts.record_evolution(session, attempt, {"step": step, "layers": {"a": {"grown": 1}, "b": {}}})
    finish(sessions, attempt)
    stream = live.get(f"/jobs/{attempt.job_id}/events", headers=STREAM).text
    assert [word for word in stream.split() if word.startswith(("job.", "topology."))] == [
        "job.created",
        "job.claimed",
        *["topology.evolved"] * 3,
        "job.succeeded",
    ]


def test_a_stream_sends_events_as_they_happen_and_ends_with_the_job(
    live: Client, attempt: Attempt, sessions: Sessions
) -> None:
    lines: list[str] = []
    with live.stream("GET", f"/jobs/{attempt.job_id}/events", headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            lines.append(line)
            if line == "event: job.claimed":
                finish(sessions, attempt)
    assert [line for line in lines if line.startswith("event: ")] == [
        "event: job.created",
        "event: job.claimed",
        "event: job.succeeded",
    ]
    last = [line for line in lines if line.startswith("id: ")][1].removeprefix("id: ")
    rest = live.get(f"/jobs/{attempt.job_id}/events", headers={**STREAM, "Last-Event-ID": last})
    assert rest.text.count("event: ") == 1
    assert "job.succeeded" in rest.text


def test_a_stream_of_one_server_shows_what_another_one_did(live: Client, other_live: Client, attempt: Attempt) -> None:
    with live.stream("GET", f"/jobs/{attempt.job_id}/events", headers=STREAM) as answer:
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if line == "event: job.claimed":
                assert other_live.post(f"/jobs/{attempt.job_id}/cancel").status_code == 200
    assert "event: job.cancelled" in lines


def test_a_stream_ends_after_a_while(live: Client, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.routes.reports.STREAM_SECONDS", 0.1)
    answer = live.get(f"/jobs/{attempt.job_id}/events", headers=STREAM)
    assert (answer.status_code, answer.text.count("event: ")) == (200, 2)


def test_a_stream_ends_if_its_job_is_deleted(live: Client, client: TestClient, attempt: Attempt) -> None:
    path = f"/jobs/{attempt.job_id}"
    with live.stream("GET", f"{path}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        while next(lines) != "event: job.claimed":
            pass
        assert client.post(f"{path}/cancel").status_code == client.delete(path).status_code == 200
        rest = list(lines)
    assert not [line for line in rest if line.startswith("event: ") and line != "event: job.cancelled"]
    problem(client.get(f"{path}/events", headers=STREAM), 404, "not_found")


def test_a_stream_holds_no_transaction_open(live: Client, attempt: Attempt, sessions: Sessions, app: FastAPI) -> None:
    with live.stream("GET", f"/jobs/{attempt.job_id}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        while next(lines) != "event: job.claimed":
            pass
        services = app.state.services
        wait_for(lambda: services.changes._waiters and not services.engine.pool.checkedout())
        finish(sessions, attempt)


def test_a_stream_behind_the_last_event_of_an_ended_job_is_not_opened_again(
    client: TestClient, attempt: Attempt, sessions: Sessions
) -> None:
    finish(sessions, attempt)
    path = f"/jobs/{attempt.job_id}/events"
    last = client.get(path).json()["data"][-1]["id"]
    assert client.get(path, headers={**STREAM, "Last-Event-ID": str(last)}).status_code == 204


def test_metrics_come_as_json_and_as_a_table(client: TestClient, attempt: Attempt, sessions: Sessions) -> None:
    with sessions.begin() as session:
        attempts.add_metrics(
            session, attempt, [(1, {"loss": 3.5}), (2, {"loss": 3.25, "rate": 0.5}), (4, {"loss": 3.0})]
        )
    path = f"/jobs/{attempt.job_id}/metrics"
    page = client.get(path, params={"limit": 2}).json()
    assert page["data"][1] == {"step": 2, "attempt": 1, "values": {"loss": 3.25, "rate": 0.5}}
    assert page["has_more"]
    rest = client.get(path, params={"after_step": 2}).json()
    assert ([row["step"] for row in rest["data"]], rest["has_more"]) == ([4], False)
    table = client.get(path, headers={"Accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text == "step,loss,rate\r\n1,3.5,\r\n2,3.25,0.5\r\n4,3.0,\r\n"


def test_metrics_are_thinned_by_the_mean_of_neighbours(
    client: TestClient, attempt: Attempt, sessions: Sessions
) -> None:
    values: list[tuple[int, dict[str, float]]] = [(step, {"loss": step / 4}) for step in range(1, 101)]
    values[6][1]["grown"] = 3.0
    with sessions.begin() as session:
        attempts.add_metrics(session, attempt, values)
    path = f"/jobs/{attempt.job_id}/metrics"
    page = client.get(path, params={"points": 10}).json()
    assert [row["step"] for row in page["data"]] == list(range(10, 101, 10))
    assert [row["values"]["loss"] for row in page["data"]] == [(step - 4.5) / 4 for step in range(10, 101, 10)]
    assert [row["values"].get("grown") for row in page["data"]] == [3.0] + [None] * 9
    assert not page["has_more"]
    assert client.get(path, params={"points": 1000}).json()["data"] == client.get(path).json()["data"]
    rest = client.get(path, params={"points": 2, "after_step": 90}).json()["data"]
    assert [row["step"] for row in rest] == [95, 100]
    table = client.get(path, params={"points": 2}, headers={"Accept": "text/csv"}).text
    assert table == "step,grown,loss\r\n50,3.0,6.375\r\n100,,18.875\r\n"


def test_nothing_measured_is_thinned_to_nothing(client: TestClient, job_id: str) -> None:
    assert client.get(f"/jobs/{job_id}/metrics?points=5").json() == {"data": [], "has_more": False}


def test_a_checkpoints_files_can_be_fetched_by_their_links(
    client: TestClient, attempt: Attempt, sessions: Sessions, app: FastAPI
) -> None:
    path = f"/jobs/{attempt.job_id}/checkpoints"
    assert client.get(path).json() == {"data": []}
    prefix = f"jobs/{attempt.job_id}/1/result/"
    app.state.services.storage.put(f"{prefix}manifest.json", b"{}")
    files = [{"name": "manifest.json", "size": 2, "sha256": "44"}]
    with sessions.begin() as session:
        attempts.publish(
            session,
            attempt,
            step=9,
            prefix=prefix,
            sha256="44",
            files=files,
            scores={"dense": 2.0},
            measured={},
            days=2,
        )
    (checkpoint,) = client.get(path).json()["data"]
    expires, created = (datetime.fromisoformat(checkpoint[name]) for name in ("expires_at", "created_at"))
    assert expires - created == timedelta(days=2)
    (data,) = [event["data"] for event in client.get(f"/jobs/{attempt.job_id}/events").json()["data"][-1:]]
    assert datetime.fromisoformat(data["expires_at"]) == expires
    assert (checkpoint["step"], checkpoint["sha256"], checkpoint["scores"]) == (9, "44", {"dense": 2.0})
    (file,) = checkpoint["files"]
    assert {name: file[name] for name in ("name", "size", "sha256")} == files[0]
    with urllib.request.urlopen(file["url"]) as answer:
        assert answer.read() == b"{}"
    with urllib.request.urlopen(urllib.request.Request(file["head_url"], method="HEAD")) as answer:
        assert (answer.status, answer.read(), answer.headers["Content-Length"]) == (200, b"", "2")
    # The storage checks the method: a link is of no use for another one.
    for url, method in ((file["url"], "HEAD"), (file["head_url"], "GET")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(url, method=method))


def test_every_file_of_a_checkpoint_has_its_format(client: TestClient, attempt: Attempt, sessions: Sessions) -> None:
    formats = {
        "README.md": None,
        "config.json": "dense",
        "manifest.json": None,
        "model-Q4_0.gguf": "gguf_q4_0",
        "model-Q8_0.gguf": "gguf_q8_0",
        "model.safetensors": "dense",
        "model.seft": "compact",
        "sparsity.json": None,
    }
    files = [{"name": name, "size": 2, "sha256": "44"} for name in formats]
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=9, prefix="x/", sha256="44", files=files, scores={}, measured={})
    (checkpoint,) = client.get(f"/jobs/{attempt.job_id}/checkpoints").json()["data"]
    assert {file["name"]: file["format"] for file in checkpoint["files"]} == formats


@pytest.mark.parametrize(
    "query",
    [
        "events?after=-1",
        f"events?after={2**63}",
        "events?after=%00",
        "events?limit=0",
        "events?limit=x",
        "metrics?limit=10001",
        "metrics?points=1",
        f"metrics?after_step={2**31}",
    ],
)
def test_cursors_and_limits_have_bounds(query: str, client: TestClient, job_id: str) -> None:
    report = problem(client.get(f"/jobs/{job_id}/{query}"), 422, "invalid_request")
    assert report["param"] == query.partition("?")[2].partition("=")[0]
