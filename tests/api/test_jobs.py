"""Jobs over HTTP."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import islice

import pytest
import redis
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import make_app
from core.infra import queue
from core.jobs import attempts, jobs
from core.jobs.attempts import Attempt
from core.models.resolver import TENANT_HUB_CALLS
from core.settings import Settings
from core.specs import JobSpec
from core.states import Phase
from tests import claims
from tests.api.conftest import Json, NewClient, problem
from tests.core.conftest import GPU
from tests.waiting import wait_for

ACTIONS = ("/cancel", "/pause", "/resume", "/stop", "/start")


def test_a_job_is_accepted_with_its_address_and_all_defaults(client: TestClient, body: Json) -> None:
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (job["status"], job["progress"], job["queue_position"]) == ("queued", 0.0, 1)
    assert job["spec"] == JobSpec.model_validate(body).model_dump(mode="json")
    found = client.get(answer.headers["location"])
    assert found.json() == job
    assert answer.headers["etag"] == found.headers["etag"]
    clone = client.post(f"/jobs/{job['id']}/clone", json={})
    assert clone.headers["etag"] == client.get(clone.headers["location"]).headers["etag"]


def test_a_job_says_in_which_data_type_it_runs(
    client: TestClient, job_id: str, sessions: sessionmaker[Session]
) -> None:
    assert client.get(f"/jobs/{job_id}").json()["dtype"] is None
    with sessions.begin() as session:
        assert claims.claim(session, "gpu-1", 60, GPU)
    for job in (client.get(f"/jobs/{job_id}").json(), *client.get("/jobs").json()["data"]):
        assert (job["spec"]["dtype"], job["dtype"]) == ("auto", "bfloat16")


def test_a_notification_is_sent_for_a_new_job_only(client: TestClient, body: Json, settings: Settings) -> None:
    with redis.Redis.from_url(str(settings.broker_url)) as broker:
        for _ in range(2):
            client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
        client.post("/jobs", json=body | {"sparsity": 2})
        assert broker.llen("seft") == 1


def test_a_job_is_accepted_while_the_broker_is_down(app: FastAPI, client: TestClient, body: Json) -> None:
    services = app.state.services
    down = queue.make_app(services.settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"}))
    app.state.services = replace(services, broker=down)
    assert client.post("/jobs", json=body).status_code == 202


def test_one_key_and_body_make_one_job_and_one_answer(client: TestClient, body: Json) -> None:
    header = {"Idempotency-Key": "k"}
    first = client.post("/jobs", json=body, headers=header)
    again = client.post("/jobs", json={**body, "seed": 0}, headers=header)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    report = problem(client.post("/jobs", json=body | {"seed": 1}, headers=header), 422, "idempotency_conflict")
    assert first.json()["id"] in report["detail"]
    assert report["param"] == "Idempotency-Key"
    assert len(client.get("/jobs").json()["data"]) == 1


def test_a_key_in_flight_is_a_conflict(client: TestClient, body: Json, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        jobs.find_by_idempotency_key(session, "ours", "k", "")
        answer = client.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert problem(answer, 409, "idempotency_in_flight")["param"] == "Idempotency-Key"
    assert answer.headers["retry-after"]


def test_a_key_sent_many_times_at_once_makes_one_job_also_at_the_limit_of_waiting_jobs(
    app: FastAPI, new_client: NewClient, body: Json
) -> None:
    service = make_app(app.state.services.settings.model_copy(update={"tenant_waiting": 1}))
    headers = {"Authorization": new_client("ours").headers["Authorization"], "Idempotency-Key": "k"}
    with TestClient(service, headers=headers) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/jobs", json=body), range(16)))
        assert len(client.get("/jobs").json()["data"]) == 1
    outcomes = {(answer.status_code, answer.json().get("code")) for answer in answers}
    assert (202, None) in outcomes
    assert outcomes <= {(202, None), (409, "idempotency_in_flight")}


def test_a_model_or_dataset_that_is_not_there_makes_no_job(client: TestClient, body: Json) -> None:
    report = problem(client.post("/jobs", json=body | {"model": "nothing"}), 422, "model_not_found")
    assert report["param"] == "model"
    assert "'nothing'" in report["errors"][0]["value"]
    assert "GET /models (`seft models`)" in report["errors"][0]["way_out"]
    report = problem(client.post("/jobs", json=body | {"dataset": f"file_{'0' * 26}"}), 422, "invalid_request")
    assert report["param"] == "dataset"
    assert client.get("/jobs").json() == {"data": [], "has_more": False}


def test_a_longer_run_time_than_the_operator_allows_is_refused(app: FastAPI, new_client: NewClient, body: Json) -> None:
    limits = {"job_seconds": 100, "tenant_job_seconds": {"theirs": 1000}}
    service = make_app(app.state.services.settings.model_copy(update=limits))
    key = new_client("ours").headers["Authorization"]
    before = TestClient(app, headers={"Authorization": key, "Idempotency-Key": "before"})
    accepted = before.post("/jobs", json=body | {"max_seconds": 101})
    with TestClient(service, headers={"Authorization": key}) as client:
        again = client.post("/jobs", json=body | {"max_seconds": 101}, headers={"Idempotency-Key": "before"})
        assert (accepted.status_code, again.json()["id"]) == (202, accepted.json()["id"]), "it was accepted before"
        report = problem(client.post("/jobs", json=body | {"max_seconds": 101}), 422, "invalid_request")
        assert (report["param"], "must be at most 100" in report["detail"]) == ("max_seconds", True)
        assert client.post("/jobs", json=body | {"max_seconds": 100}).status_code == 202
    assert service.state.services.settings.job_seconds_of("theirs") == 1000


def test_an_unreachable_hub_has_its_own_code(client: TestClient, body: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    answer = client.post("/jobs", json=body | {"model": "owner/name"})
    (flaw,) = problem(answer, 502, "hub_unreachable")["errors"]
    assert "GET /models (`seft models`)" in flaw["way_out"]


@pytest.fixture
def mute_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that accepts connections and never responds. It is closed at the end of the test."""
    import huggingface_hub.constants

    with socket.create_server(("127.0.0.1", 0), backlog=64) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        yield hub


def test_a_hub_that_never_answers_stalls_nobody_else(
    mute_hub: socket.socket, client: TestClient, new_client: NewClient, body: Json
) -> None:
    with ThreadPoolExecutor(40) as pool:
        calls = [pool.submit(client.post, "/jobs", json=body | {"model": "owner/name"}) for _ in range(40)]
        waiting = [mute_hub.accept()[0] for _ in range(TENANT_HUB_CALLS)]
        rejected = [answer.result() for answer in islice(as_completed(calls), 40 - TENANT_HUB_CALLS)]
        for answer in rejected:
            problem(answer, 503, "hub_busy")
            assert answer.headers["retry-after"]
        assert client.post("/jobs", json=body).status_code == 202
        other = pool.submit(new_client("theirs").get, "/models/owner/name")
        waiting.append(mute_hub.accept()[0])
        for connection in waiting:
            connection.close()
        mute_hub.close()
    problem(other.result(), 502, "hub_unreachable")
    statuses = sorted(answer.result().status_code for answer in calls)
    assert statuses == [502] * TENANT_HUB_CALLS + [503] * (40 - TENANT_HUB_CALLS)


def test_the_list_is_paged_newest_first_and_narrowed(client: TestClient, body: Json) -> None:
    job_ids = [client.post("/jobs", json=body).json()["id"] for _ in range(5)]
    listed: list[str] = []
    page = client.get("/jobs", params={"limit": 2}).json()
    listed += [job["id"] for job in page["data"]]
    while page["has_more"]:
        page = client.get("/jobs", params={"limit": 2, "after": listed[-1]}).json()
        listed += [job["id"] for job in page["data"]]
    assert listed == sorted(job_ids, reverse=True)
    assert client.get("/jobs", params={"status": "running"}).json()["data"] == []
    assert len(client.get("/jobs", params={"status": "queued"}).json()["data"]) == 5


def test_a_poller_gets_304_if_nothing_changed(
    client: TestClient, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    path = f"/jobs/{attempt.job_id}"
    etag = client.get(path).headers["etag"]
    for header in (etag, f'"other", W/{etag}', "*"):
        same = client.get(path, headers={"If-None-Match": header})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    with sessions.begin() as session:
        attempts.heartbeat(session, attempt, 60, 0.0)
    assert client.get(path, headers={"If-None-Match": etag}).status_code == 304
    with sessions.begin() as session:
        attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=7)
    fresh = client.get(path, headers={"If-None-Match": etag})
    assert fresh.status_code == 200
    assert (fresh.json()["phase"], fresh.json()["progress"], fresh.json()["step"]) == ("training", 0.5, 7)


def test_a_list_that_did_not_change_is_not_sent_again(client: TestClient, body: Json, job_id: str) -> None:
    first = client.get("/jobs")
    etag = first.headers["etag"]
    same = client.get("/jobs", headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    client.post("/jobs", json=body)
    assert len(client.get("/jobs", headers={"If-None-Match": etag}).json()["data"]) == 2


def change_soon(sessions: sessionmaker[Session], attempt: Attempt) -> threading.Timer:
    def change() -> None:
        with sessions.begin() as session:
            attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=7)

    timer = threading.Timer(0.5, change)
    timer.start()
    return timer


@pytest.mark.parametrize("tagged", [True, False])
def test_a_waiting_poller_is_answered_when_the_job_changes(
    tagged: bool, client: TestClient, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    path = f"/jobs/{attempt.job_id}"
    headers = {"If-None-Match": client.get(path).headers["etag"]} if tagged else {}
    timer = change_soon(sessions, attempt)
    answer = client.get(path, params={"wait": 60}, headers=headers)
    timer.join()
    assert (answer.status_code, answer.json()["step"]) == (200, 7)


def test_a_waiting_poller_gets_304_at_the_end_if_nothing_changed(client: TestClient, job_id: str) -> None:
    path = f"/jobs/{job_id}"
    etag = client.get(path).headers["etag"]
    began = time.monotonic()
    assert client.get(path, params={"wait": 1}, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(path, params={"wait": 1}).status_code == 200
    assert time.monotonic() - began >= 2


def test_no_request_waits_for_a_finished_job_or_a_change_that_has_happened(client: TestClient, job_id: str) -> None:
    path = f"/jobs/{job_id}"
    assert client.get(path, params={"wait": 60}, headers={"If-None-Match": '"old"'}).status_code == 200
    client.post(f"{path}/cancel")
    etag = client.get(path, params={"wait": 60}).headers["etag"]
    assert client.get(path, params={"wait": 60}, headers={"If-None-Match": etag}).status_code == 304
    problem(client.get(path, params={"wait": 61}), 422, "invalid_request")


def test_nothing_is_held_open_while_a_poller_waits(app: FastAPI, client: TestClient, job_id: str) -> None:
    services = app.state.services
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.get, f"/jobs/{job_id}", params={"wait": 60})
        wait_for(lambda: services.changes._waiters and not services.engine.pool.checkedout())
        client.post(f"/jobs/{job_id}/cancel")
        assert waiting.result().json()["status"] == "cancelled"


def test_a_job_of_newer_software_is_returned_unchanged(
    client: TestClient, job_id: str, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    newer = "UPDATE jobs SET phase = 'distilling', spec = spec || '{\"invented\": 3}' WHERE id = :id"
    with sessions.begin() as session:
        session.execute(text(newer), {"id": job_id})
    for job in (client.get(f"/jobs/{job_id}").json(), client.get("/jobs").json()["data"][0]):
        assert (job["phase"], job["spec"]["invented"]) == ("distilling", 3)


def test_a_job_of_older_software_is_returned_with_all_defaults(
    client: TestClient, job_id: str, sessions: sessionmaker[Session]
) -> None:
    now = client.get(f"/jobs/{job_id}").json()["spec"]
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET spec = spec - 'seed'"))
    assert client.get(f"/jobs/{job_id}").json()["spec"] == now


def test_jobs_are_found_by_their_model_and_metadata(client: TestClient, body: Json) -> None:
    job_ids = [
        client.post("/jobs", json=body | {"metadata": metadata}).json()["id"]
        for metadata in ({}, {"team": "a"}, {"team": "a", "run": "x=1"}, {"team": "b"})
    ]

    def search(query: str) -> set[str]:
        return {job["id"] for job in client.get(f"/jobs?{query}").json()["data"]}

    assert search("model=tiny") == set(job_ids)
    assert search("model=tin") == set()
    assert search("metadata=team=a") == set(job_ids[1:3])
    assert search("metadata=team=a&metadata=run=x%3D1") == {job_ids[2]}
    assert search("metadata=team=a&status=running") == search("metadata=team=") == set()
    assert search("metadata=team=a&metadata=team=b") == set(), "no job has both"
    for wrong in ("team", "=a", "team=%00"):
        assert problem(client.get(f"/jobs?metadata={wrong}"), 422, "invalid_request")["param"] == "metadata"


def test_a_clone_has_the_same_settings_except_its_overrides(client: TestClient, body: Json) -> None:
    original = client.post("/jobs", json=body | {"metadata": {"team": "a", "run": "1"}, "repair": {"steps": 7}}).json()
    overrides = {"seed": 3, "repair": {"density": 0.1}, "metadata": {"run": None, "of": "1"}}
    answer = client.post(f"/jobs/{original['id']}/clone", json=overrides)
    assert answer.status_code == 202
    copy = answer.json()
    assert answer.headers["location"] == f"/jobs/{copy['id']}"
    assert copy["id"] != original["id"]
    repair = {**original["spec"]["repair"], "density": 0.1}
    assert copy["spec"] == {**original["spec"], "seed": 3, "repair": repair, "metadata": {"team": "a", "of": "1"}}
    again = client.post(f"/jobs/{copy['id']}/clone", json={"repair": None}).json()
    assert again["spec"]["repair"] == client.post("/jobs", json=body).json()["spec"]["repair"]


def test_a_clone_is_checked_like_any_job(client: TestClient, job_id: str) -> None:
    path = f"/jobs/{job_id}/clone"
    for wrong, param in (
        ({"sparsity": 2}, "sparsity"),
        ({"repair": {"stepps": 1}}, "repair.stepps"),
        ({"sparsity": None}, "sparsity"),
        ({"repair": 5}, "repair"),
    ):
        assert problem(client.post(path, json=wrong), 422, "invalid_request")["param"] == param
    problem(client.post(path, json=[]), 422, "invalid_request")
    problem(client.post(path, json={"model": "nothing"}), 422, "model_not_found")
    assert len(client.get("/jobs").json()["data"]) == 1


def test_a_failure_says_whose_fault_it_is(
    client: TestClient, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    error = {"fault": attempts.Fault.USER, "code": "not_enough_text", "message": "Send more."}
    with sessions.begin() as session:
        attempts.fail(session, attempt, **error, retry=False, max_failures=3)  # type: ignore[arg-type]
    job = client.get(f"/jobs/{attempt.job_id}").json()
    assert (job["status"], job["error"]) == ("failed", error)


def test_cancelling_is_at_once_and_may_be_repeated(client: TestClient, attempt: Attempt) -> None:
    first = client.post(f"/jobs/{attempt.job_id}/cancel")
    again = client.post(f"/jobs/{attempt.job_id}/cancel")
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    assert first.json()["status"] == "cancelled"


def test_a_job_is_made_to_wait_started_paused_and_resumed(
    client: TestClient, body: Json, sessions: sessionmaker[Session], settings: Settings
) -> None:
    def act(action: str) -> Json:
        answers = [client.post(f"/jobs/{job['id']}/{action}") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        assert answers[0].json() == answers[1].json()
        view: Json = answers[0].json()
        return view

    with redis.Redis.from_url(str(settings.broker_url)) as broker:
        job = client.post("/jobs", json=body | {"auto_start": False}).json()
        assert (job["status"], job["reason"]["code"], broker.llen("seft")) == ("paused", "not_started", 0)
        assert (act("start")["status"], broker.llen("seft")) == ("queued", 2)
    assert act("pause")["reason"]["code"] == "asked"
    problem(client.post(f"/jobs/{job['id']}/start"), 409, "conflict")
    assert act("resume")["queue_position"] == 1
    with sessions.begin() as session:
        assert claims.claim(session, "gpu-1", 60)
    assert act("pause")["pausing"]
    stopping = act("stop")
    assert (stopping["status"], stopping["pausing"], stopping["stopping"]) == ("running", False, True)
    assert client.get("/jobs", params={"status": "paused"}).json()["data"] == []


def test_a_finished_job_is_not_cancelled(client: TestClient, attempt: Attempt, sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    report = problem(client.post(f"/jobs/{attempt.job_id}/cancel"), 409, "conflict")
    assert "succeeded" in report["detail"]


@pytest.mark.parametrize("path", ["", "/events", "/metrics", "/checkpoints", *ACTIONS])
def test_another_tenants_job_is_not_there(path: str, new_client: NewClient, job_id: str, client: TestClient) -> None:
    stranger, method = new_client("theirs"), "POST" if path in ACTIONS else "GET"
    for unknown in (job_id, f"job_{'0' * 26}", "nonsense", "a%00b"):
        problem(stranger.request(method, f"/jobs/{unknown}{path}"), 404, "not_found")
    assert stranger.get("/jobs").json()["data"] == []
    assert client.get(f"/jobs/{job_id}").json()["status"] == "queued"
