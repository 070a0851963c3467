"""Pushes of a result over HTTP and on the job's page: what is refused at the door, and who sees what."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from huggingface_hub import constants
from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core.jobs import pushes
from core.specs import JobSpec
from core.tables import Push
from tests.api.conftest import Json, NewClient, problem
from tests.api.dashboard.conftest import ROOT, NewBrowser, new_browser, secret, visible
from tests.hub import hub, use_hub
from tests.hub_uploads import Uploads

__all__ = ["new_browser", "secret"]

WRITER, READER, REVOKED = "hf_writes", "hf_reads", "hf_revoked"
TARGET = {"repository": "acme/sparse"}


@pytest.fixture(autouse=True)
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serve a hub, and yield the owner of each valid token."""
    uploads = Uploads(tmp_path / "repositories", writers=(WRITER,))
    owners = dict.fromkeys((WRITER, READER, REVOKED), "acme")
    with hub({}, owners, None, uploads) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield owners


def give(client: TestClient, token: str) -> None:
    assert client.put("/hub-token", json={"token": token}).status_code == 200


def test_a_push_is_requested_once_and_only_its_tenant_sees_it(
    client: TestClient, new_client: NewClient, result: str, sessions: sessionmaker[Session]
) -> None:
    give(client, WRITER)
    path = f"/jobs/{result}/push"
    first = client.post(path, json=TARGET)
    assert (first.status_code, first.json()["status"]) == (202, "pending"), first.text
    with sessions.begin() as session:
        claimed = pushes.claim(session)
        assert claimed is not None
    running = client.post(path, json={**TARGET, "private": False}).json()
    times = {"requested_at": running["requested_at"], "next_try_at": None}
    assert running == {**first.json(), **times, "status": "running", "tries": 1}, "a running push stays as it is"
    assert client.get(f"/jobs/{result}/pushes").json() == {"data": [running]}
    with sessions.begin() as session:
        pushes.record_failure(session, claimed, "hub_unreachable", "It did not answer.", retry=True)
    hastened = client.post(path, json={**TARGET, "private": False}).json()
    assert hastened["next_try_at"] == hastened["requested_at"] > first.json()["next_try_at"]
    times = {name: hastened[name] for name in ("requested_at", "next_try_at")}
    assert hastened == {**first.json(), **times, "private": False}, "it waited for its next try"
    assert client.get("/audit", params={"limit": 1}).json()["data"][0]["action"] == "push_job"
    stranger = new_client("theirs")
    give(stranger, WRITER)
    problem(stranger.post(path, json=TARGET), 404, "not_found")
    problem(stranger.get(f"/jobs/{result}/pushes"), 404, "not_found")

    with sessions.begin() as session:
        again_claimed = pushes.claim(session)
        assert again_claimed is not None
        assert (again_claimed.number, claimed.number) == (1, 1)
        assert not pushes.renew(session, claimed), "the try of the earlier request has ended"
        pushes.record_failure(session, again_claimed, "hub_refused", "It was refused.", retry=False)
    failed = client.get(f"/jobs/{result}/pushes").json()["data"][0]
    assert (failed["status"], failed["error"]["message"], failed["finished_at"] is None) == (
        "failed",
        "It was refused.",
        False,
    )
    again = client.post(path, json=TARGET).json()
    assert again == {**first.json(), "requested_at": again["requested_at"], "next_try_at": again["next_try_at"]}
    assert client.get(f"/jobs/{result}/events").json()["data"][-1]["type"] == "job.push_failed"


def test_a_push_that_must_fail_is_refused_with_the_way_out(
    client: TestClient, body: Json, result: str, world: dict[str, str]
) -> None:
    for token, repository, rule in (
        (None, "acme/sparse", "only with a hub token of your tenant"),
        (READER, "acme/sparse", "the token can only read"),
        (REVOKED, "acme/sparse", "only with a hub token that the hub accepts"),
        (WRITER, "stranger/sparse", "must belong to the account of your hub token"),
        (WRITER, "sparse", "should match pattern"),
        (WRITER, "acme/a--b", "Cannot have -- or .."),
    ):
        if token:
            give(client, token)
        if token == REVOKED:
            world.pop(REVOKED)
        target = {"repository": repository}
        report = problem(client.post("/jobs", json=body | {"output": {"push": target}}), 422, "invalid_request")
        assert (report["param"], rule in report["errors"][0]["rule"]) == ("output.push.repository", True), report
        report = problem(client.post(f"/jobs/{result}/push", json=target), 422, "invalid_request")
        assert (report["param"], rule in report["errors"][0]["rule"]) == ("repository", True), report


@pytest.mark.parametrize("revision", ["a..b", "a/", "a.", "a//b", "a/.b", "x.lock", "x.lock/b"])
def test_a_branch_that_git_refuses_is_refused_but_a_stored_one_stays_readable(
    client: TestClient, body: Json, result: str, revision: str
) -> None:
    give(client, WRITER)
    target = {**TARGET, "revision": revision}
    pushing = body | {"output": {"push": target}}
    for path, request, param in (
        ("/jobs", pushing, "output.push.revision"),
        (f"/jobs/{result}/clone", {"output": {"push": target}}, "output.push.revision"),
        (f"/jobs/{result}/push", target, "revision"),
    ):
        (flaw,) = problem(client.post(path, json=request), 422, "invalid_request")["errors"]
        assert (flaw["param"], flaw["value"]) == (param, repr(revision))
    assert JobSpec.model_validate(pushing).output.push.revision == revision
    allowed = {**TARGET, "revision": "release/v1.0-locked"}
    assert client.post(f"/jobs/{result}/push", json=allowed).status_code == 202


def test_a_job_is_taken_while_the_hub_is_down_and_refused_if_it_must_not_be_used(
    client: TestClient, body: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(client, WRITER)
    pushing = body | {"output": {"push": TARGET}}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    created = client.post("/jobs", json=pushing)
    assert created.status_code == 202, created.text
    assert created.json()["spec"]["output"]["push"] == {**TARGET, "private": True, "revision": "main"}
    report = problem(client.post(f"/jobs/{created.json()['id']}/push", json=TARGET), 409, "conflict")
    assert "has no checkpoint to push: it is queued" in report["detail"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in problem(client.post("/jobs", json=pushing), 422, "invalid_request")["detail"]


def test_the_page_of_a_job_pushes_its_result(
    client: TestClient, new_browser: NewBrowser, result: str, sessions: sessionmaker[Session]
) -> None:
    browser, path = new_browser(), f"/jobs/{result}"
    refused = browser.submit(f"{path}/push", {"repository": "acme/sparse"})
    assert (refused.status_code, "(`seft hub-token set`, or the page Keys in" in visible(refused.text)) == (422, True)
    give(client, WRITER)
    assert browser.submit(f"{path}/push", {"repository": "sparse"}).status_code == 422
    assert browser.submit(f"{path}/push", {"repository": " acme/sparse "}).headers["location"] == ROOT + path
    page = browser.show(path)
    assert (">pending<" in page, 'id="pushes" data-poll="3"' in page) == (True, True)
    with sessions.begin() as session:
        session.execute(update(Push).values(due_at=func.now() + timedelta(hours=20)))
    polls = re.search(r'id="pushes" data-poll="(\d+)"', browser.show(path))
    assert polls is not None
    assert int(polls[1]) > 3600, "nothing changes before the next try"
    with sessions.begin() as session:
        session.execute(update(Push).values(due_at=func.now() - timedelta(seconds=1)))
    with sessions.begin() as session:
        claimed = pushes.claim(session)
        assert claimed is not None
        pushes.record_success(session, claimed, "https://hub.example/acme/sparse/commit/0")
    page = browser.show(path)
    assert 'href="https://hub.example/acme/sparse/commit/0"' in page
    assert 'id="pushes" data-poll' not in page
    assert "Pushed to acme/sparse" in visible(page)
    assert new_browser("theirs").submit(f"{path}/push", TARGET).status_code == 404


def test_the_page_of_a_job_offers_to_repeat_its_newest_push(
    client: TestClient, new_browser: NewBrowser, result: str
) -> None:
    give(client, WRITER)
    browser, path = new_browser(), f"/jobs/{result}"
    for target in (
        {"repository": "acme/first", "revision": "main", "private": True},
        {"repository": "acme/other", "revision": "next", "private": False},
    ):
        client.post(f"{path}/push", json=target)
        form = browser.show(path).partition(f'action="{ROOT}{path}/push"')[2].partition("</form>")[0]
        fields = dict(re.findall(r'name="(repository|revision)" value="([^"]*)"', form))
        fields |= dict.fromkeys(re.findall(r'name="(public)" value="true" checked', form), "true")
        assert browser.submit(f"{path}/push", fields).status_code == 303
        pushed = client.get(f"{path}/pushes").json()["data"]
        assert {name: pushed[0][name] for name in target} == target
    assert len(pushed) == 2
    refused = browser.submit(f"{path}/push", {"repository": "acme/first", "revision": "-x"})
    assert (refused.status_code, 'value="-x"' in refused.text) == (422, True)
    assert ('id="revision-error"' in refused.text, 'id="repository-error"' in refused.text) == (True, False)
