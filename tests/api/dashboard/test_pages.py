"""Pages: every one of them, what a stranger sees, what is escaped, what a poller is spared."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.pages.overview import SHOWN
from api.dashboard.render import ASSETS
from api.dashboard.words import size
from core import workers
from core.jobs import attempts, fairness
from core.jobs.attempts import Attempt, Fault
from core.tables import Worker
from tests.api.conftest import Json, NewClient
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, visible
from tests.core.conftest import GPU

EVIL = "<script>alert('&')</script>"


@pytest.fixture
def evil_job(client: TestClient, body: Json) -> str:
    answer = client.post("/jobs", json={**body, "suffix": EVIL, "metadata": {EVIL: EVIL}})
    made: str = answer.json()["id"]
    return made


@pytest.fixture
def paths(client: TestClient, body: Json, evil_job: str) -> list[str]:
    """Every page with something of ours on it."""
    client.post("/datasets", files={"file": ("<script>alert('&').jsonl", b'{"text": "a"}\n{"text": "b"}\n')})
    client.post("/keys", json={"name": EVIL})
    hook = client.post("/webhooks", json={"url": f"https://example.com/{EVIL}"}).json()["id"]
    other = client.post("/jobs", json={**body, "sparsity": 0.7, "suffix": EVIL}).json()["id"]
    return [
        "/",
        "/jobs",
        f"/jobs?q={EVIL}",
        f"/jobs/{evil_job}",
        f"/jobs/new?clone={evil_job}",
        f"/compare?job={evil_job}&job={other}",
        "/datasets",
        "/webhooks",
        f"/webhooks/{hook}",
        "/keys",
    ]


def test_a_worker_is_idle_works_and_falls_silent_and_a_strangers_job_is_not_named(
    browser: Browser, new_browser: NewBrowser, app: FastAPI, sessions: sessionmaker[Session], job_id: str
) -> None:
    assert "No worker is here" in browser.show("/")
    settings = app.state.services.settings
    with sessions.begin() as session:
        workers.record_heartbeat(session, "gpu-1", GPU, temperature=61)
    assert "61 °C" in browser.show("/")
    page = browser.show("/workers")
    assert "61 °C" in page
    assert ">idle<" in page
    assert f"{GPU.device_name}<br>" in page
    assert "85.9 GB of memory, 537 GB of disk free" in page
    assert "No worker is here" not in browser.show("/")
    assert "next to be taken, in about a minute" in visible(browser.show("/"))
    with sessions.begin() as session:
        assert attempts.claim(session, "gpu-1", 60)
    assert f"/jobs/{job_id}" in browser.show("/workers")
    strangers = new_browser("theirs").show("/workers")
    assert ">working<" in strangers
    assert job_id not in strangers
    with sessions.begin() as session:
        long = timedelta(seconds=1 + workers.MAX_MISSED_SWEEPS * settings.sweep_seconds)
        session.execute(update(Worker).values(seen_at=func.now() - long))
    assert ">silent<" in browser.show("/workers")
    assert "1 of 1 workers has fallen silent" in browser.show("/")


def test_every_string_of_a_person_is_escaped(browser: Browser, paths: list[str]) -> None:
    for path in paths:
        page = browser.show(path)
        assert "<script>alert" not in page, path
        assert "&lt;script&gt;alert" in page or "\\u003cscript\\u003e" in page, path


def test_no_page_needs_what_its_policy_forbids(browser: Browser, paths: list[str]) -> None:
    for path in paths:
        answer = browser.get(ROOT + path)
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=|javascript:", answer.text), path
        assert not re.search(r'(src|href|action)="(https?:)?//', answer.text), path


def test_a_dataset_is_shown_as_a_model_would_read_it(
    browser: Browser, new_browser: NewBrowser, client: TestClient
) -> None:
    pairs = f'{{"prompt": "ask a ", "completion": "{EVIL}"}}\n{{"prompt": "ask b ", "completion": "b"}}\n'
    made = client.post("/datasets", files={"file": ("x.jsonl", pairs.encode())}).json()["id"]
    assert f"/datasets/{made}" in browser.show("/datasets")
    assert new_browser("theirs").get(f"{ROOT}/datasets/{made}").status_code == 404
    page = browser.show(f"/datasets/{made}?model=tiny")
    assert 'ask b<mark class="trained"> b &lt;eos&gt;</mark>' in page
    assert "8 tokens, 4 of them trained on" in re.sub(r"\s+", " ", page)
    refused = browser.get(f"{ROOT}/datasets/{made}", params={"model": EVIL})
    assert (refused.status_code, "no local model and no hub id" in refused.text) == (422, True)
    assert EVIL not in refused.text


def test_a_stranger_sees_nothing_of_another_tenant(
    browser: Browser, new_browser: NewBrowser, paths: list[str], evil_job: str, dataset: str
) -> None:
    stranger = new_browser("theirs")
    for path in paths:
        answer = stranger.get(ROOT + path)
        assert answer.status_code == (404 if "job_" in path or "hook_" in path else 200), path
        for ours in (evil_job, dataset):
            assert ours not in answer.text.replace(f"There is no job &#39;{evil_job}&#39;", ""), path
        if not path.startswith("/jobs?q"):
            assert "alert" not in answer.text, path
    for path in (
        f"/jobs/{evil_job}/series",
        f"/jobs/{evil_job}/topology",
        f"/jobs/{evil_job}/checkpoints/ckpt_1/config.json",
    ):
        assert stranger.get(ROOT + path).status_code == 404
    for wish in ("cancel", "pause", "stop"):
        assert stranger.submit(f"/jobs/{evil_job}/{wish}").status_code == 404
    assert ">queued<" in browser.show(f"/jobs/{evil_job}")


def test_a_poller_is_spared_a_page_that_has_not_changed(browser: Browser, client: TestClient, attempt: Attempt) -> None:
    for path in ("/", "/jobs", *(f"/jobs/{attempt.job_id}{part}" for part in ("", "/series", "/topology"))):
        first = browser.get(ROOT + path)
        again = browser.get(ROOT + path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), path
        assert first.headers["cache-control"] == "private, no-cache"
    seen = browser.get(f"{ROOT}/jobs/{attempt.job_id}").headers["etag"]
    client.post(f"/jobs/{attempt.job_id}/cancel")
    assert browser.get(f"{ROOT}/jobs/{attempt.job_id}", headers={"If-None-Match": seen}).status_code == 200


def test_the_overview_shows_those_jobs_first_that_are_taken_first(
    browser: Browser, client: TestClient, body: Json
) -> None:
    made = [client.post("/jobs", json={**body, "seed": seed}).json()["id"] for seed in range(SHOWN + 1)]
    urgent = client.post("/jobs", json={**body, "priority": 1}).json()["id"]
    shown = re.findall(r'href="/dashboard/jobs/(job_\w+)"', browser.show("/"))
    assert shown == [urgent, *made[: SHOWN - 1]]


def test_the_overview_tells_trouble_first_and_what_is_stored(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt
) -> None:
    assert "Trouble" not in browser.show("/")
    with sessions.begin() as session:
        stored = sum(fairness.stored_bytes(session, "ours"))
        attempts.fail(
            session, attempt, fault=Fault.SYSTEM, code="x", message="disk is away", retry=False, max_failures=1
        )
    text = " ".join(visible(browser.show("/")).split())
    assert text.index("Trouble") < text.index("Disk is away the service's fault") < text.index("Running")
    assert f"Storage {size(stored)} in use" in text


def test_a_job_that_ended_before_anything_was_measured_shows_why_and_no_empty_charts(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt
) -> None:
    path, empty = f"/jobs/{attempt.job_id}", ("data-charts", "data-topology", 'id="scores"')
    assert all(part in browser.show(path) for part in empty)
    with sessions.begin() as session:
        attempts.fail(session, attempt, fault=Fault.USER, code="x", message="too short", retry=False, max_failures=1)
    page = browser.show(path)
    assert page.count("Too short") == 2, "above, and among the events"
    assert not any(part in page for part in empty)


def test_what_is_not_there_is_told_on_a_page(browser: Browser) -> None:
    for path in (
        "/nothing",
        "/jobs/job_1",
        f"/jobs/job_{'0' * 26}",
        "/jobs/\ud800".encode("utf-8", "replace").decode(),
    ):
        answer = browser.get(ROOT + path)
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.headers["x-request-id"] in answer.text


def test_assets_are_kept_for_good_and_named_by_their_content(browser: Browser) -> None:
    page = browser.show("/")
    total = len(page)
    for url in re.findall(r'(?:src|href)="(/dashboard/assets/[^"]+)"', page):
        answer = browser.get(url)
        assert answer.status_code == 200, url
        assert "immutable" in answer.headers["cache-control"]
        assert re.search(r"\?v=[0-9a-f]{12}$", url)
        total += len(answer.content)
    assert total < 100_000, "the first page weighs too much"


def test_what_others_wrote_lies_here_with_its_licence() -> None:
    names = {path.name for path in (ASSETS / "vendored").iterdir()}
    assert {name.partition(".")[0] for name in names} == {"htmx", "uPlot"}
    assert {"htmx.LICENSE.txt", "uPlot.LICENSE.txt"} <= names


def test_jobs_are_found_by_status_model_metadata_date_and_id(
    browser: Browser, client: TestClient, body: Json, new_client: NewClient
) -> None:
    different: dict[str, Json] = {"one": {"metadata": {"team": "search"}}, "two": {}, "three": {"auto_start": False}}
    made = {
        name: client.post("/jobs", json={**body, "suffix": name, **more}).json()["id"]
        for name, more in different.items()
    }

    def found(query: str) -> set[str]:
        page = browser.show(f"/jobs?{query}")
        return {name for name, job in made.items() if job in page}

    assert found("") == {"one", "two", "three"}
    assert found("status=paused") == {"three"}
    assert found("q=team%3Dsearch") == {"one"}
    assert found("q=tiny") == {"one", "two", "three"}
    assert found("q=tin") == set()
    assert found("since=2020-01-01") == {"one", "two", "three"}
    assert found("until=2020-01-01") == set()
    assert found("status=nonsense&since=yesterday") == {"one", "two", "three"}
    assert found(f"after={made['two']}") == {"one"}
    assert found(f"after={made['two']}&order=oldest") == {"three"}
    assert 'aria-sort="ascending"' in browser.show("/jobs?order=oldest&q=tiny")
    assert "q=tiny&amp;order=sparsest" in browser.show("/jobs?order=oldest&q=tiny")
    assert browser.get(f"{ROOT}/jobs?q={made['two']}").headers["location"] == f"{ROOT}/jobs/{made['two']}"


@pytest.mark.parametrize("picked", [0, 1, 7])
def test_too_few_or_too_many_jobs_are_not_compared(browser: Browser, job_id: str, picked: int) -> None:
    query = "&".join(f"job=job_{n:026}" for n in range(picked))
    assert f"You picked {picked}" in browser.show(f"/compare?{query}")


def test_a_comparison_shows_the_settings_that_differ_and_no_others(
    browser: Browser, client: TestClient, body: Json
) -> None:
    jobs = [
        client.post("/jobs", json={**body, "sparsity": sparsity, "repair": {"steps": 70}}).json()["id"]
        for sparsity in (0.5, 0.61)
    ]
    text = visible(browser.show("/compare?" + "&".join(f"job={job}" for job in jobs)))
    assert "0.61" in text
    assert "repair.steps" not in text


def test_a_wish_is_granted_and_one_that_comes_too_late_is_told(browser: Browser, job_id: str) -> None:
    page = browser.show(f"/jobs/{job_id}")
    assert "Saves its state and frees the device" in page
    assert browser.submit(f"/jobs/{job_id}/pause").headers["location"] == f"{ROOT}/jobs/{job_id}"
    assert ">paused<" in browser.show(f"/jobs/{job_id}")
    browser.submit(f"/jobs/{job_id}/cancel")
    answer = browser.submit(f"/jobs/{job_id}/resume")
    assert answer.headers["location"] == f"{ROOT}/jobs/{job_id}?refused=resume"
    assert "Resume came too late: the job is cancelled" in browser.show(f"/jobs/{job_id}?refused=resume")
    assert browser.submit(f"/jobs/{job_id}/explode").status_code == 404


def test_a_key_is_shown_once_and_its_change_is_written_down(browser: Browser, app: Any) -> None:
    answer = browser.submit("/keys", {"name": "nightly", "scope": "read"})
    secret = re.search(r"seft_[\w-]{40,}", answer.text)
    assert secret
    assert answer.headers["cache-control"] == "no-store"
    assert TestClient(app).get("/jobs", headers={"Authorization": f"Bearer {secret[0]}"}).status_code == 200
    page = browser.show("/keys")
    assert secret[0] not in page
    assert "create key" in page
    made = re.search(r"/keys/(key_\w+)/revoke", page)
    assert made
    assert browser.submit(f"/keys/{made[1]}/revoke").status_code == 303
    assert TestClient(app).get("/jobs", headers={"Authorization": f"Bearer {secret[0]}"}).status_code == 401
    assert browser.submit("/keys", {"name": "", "scope": "read"}).status_code == 422


def test_a_broken_dataset_is_refused_line_by_line(browser: Browser, csrf: Callable[[], str]) -> None:
    def upload(name: str, content: bytes) -> Any:
        return browser.post(f"{ROOT}/datasets", data={"csrf": csrf()}, files={"file": (name, content)})

    answer = upload("texts.jsonl", b'{"text": "a"}\nno json\n{"text": 7}\n')
    assert answer.status_code == 422
    text = visible(answer.text)
    assert "line 2" in text
    assert "line 3" in text
    assert "texts.jsonl" not in browser.show("/datasets")
    answer = upload("texts.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    assert answer.status_code == 303
    page = browser.show(answer.headers["location"].removeprefix(ROOT))
    assert "Uploaded and found right" in page
    assert "texts.jsonl" in page


@pytest.fixture
def csrf(browser: Browser) -> Callable[[], str]:
    return browser.csrf
