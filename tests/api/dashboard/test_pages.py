"""All pages: tenants are separated, values are escaped, and polling is cheap."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.render import ASSETS
from core import workers
from core.access.keys import Scope
from core.jobs import attempts
from core.jobs.attempts import Attempt, Fault
from core.tables import Worker
from tests import claims
from tests.api.conftest import Json, NewClient
from tests.api.dashboard.conftest import ROOT, Browser, NewBrowser, visible
from tests.api.test_datasets import PART
from tests.core.conftest import GPU
from tests.hollow import TEXTS

EVIL = "<script>alert('&')</script>"


@pytest.fixture
def evil_job(client: TestClient, body: Json) -> str:
    response = client.post("/jobs", json={**body, "suffix": EVIL, "metadata": {EVIL: EVIL}})
    job_id: str = response.json()["id"]
    return job_id


@pytest.fixture
def paths(client: TestClient, body: Json, evil_job: str) -> list[str]:
    """Return the path of every page, each with content of our tenant."""
    client.post("/datasets", files={"file": ("<script>alert('&').jsonl", TEXTS)})
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


def test_worker_is_idle_working_or_not_responding_and_other_tenants_jobs_are_hidden(
    browser: Browser, new_browser: NewBrowser, app: FastAPI, sessions: sessionmaker[Session], job_id: str
) -> None:
    assert "No worker is connected" in browser.show("/")
    settings = app.state.services.settings
    with sessions.begin() as session:
        workers.record_heartbeat(session, "gpu-1", GPU, temperature=61)
    assert "61 °C" in browser.show("/")
    page = browser.show("/workers")
    assert "61 °C" in page
    assert ">idle<" in page
    assert f"{GPU.device_name}<br>" in page
    assert "85.9 GB of memory, 537 GB of disk free" in page
    assert "No worker is connected" not in browser.show("/")
    assert "next in the queue, starts in about a minute" in visible(browser.show("/"))
    with sessions.begin() as session:
        assert claims.claim(session, "gpu-1", 60)
    assert f"/jobs/{job_id}" in browser.show("/workers")
    strangers = new_browser("theirs").show("/workers")
    assert ">working<" in strangers
    assert job_id not in strangers
    with sessions.begin() as session:
        overdue = timedelta(seconds=1 + workers.MAX_MISSED_SWEEPS * settings.sweep_seconds)
        session.execute(update(Worker).values(seen_at=func.now() - overdue))
    assert ">not responding<" in browser.show("/workers")
    assert "1 of 1 workers is not responding" in browser.show("/")


def test_user_text_is_escaped(browser: Browser, paths: list[str]) -> None:
    for path in paths:
        page = browser.show(path)
        assert "<script>alert" not in page, path
        assert "&lt;script&gt;alert" in page or "\\u003cscript\\u003e" in page, path


def test_no_page_violates_its_content_security_policy(browser: Browser, paths: list[str]) -> None:
    for path in paths:
        response = browser.get(ROOT + path)
        policy = response.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=)|<style|\sstyle=|\son[a-z]+=|javascript:", response.text), path
        assert not re.search(r'(src|href|action)="(https?:)?//', response.text), path


def test_dataset_preview_shows_the_training_input_of_a_model(
    browser: Browser, new_browser: NewBrowser, client: TestClient
) -> None:
    pairs = f'{{"prompt": "ask a ", "completion": "{EVIL}"}}\n{{"prompt": "ask b ", "completion": "b"}}\n'
    dataset_id = client.post("/datasets", files={"file": ("x.jsonl", pairs.encode())}).json()["id"]
    assert f"/datasets/{dataset_id}" in browser.show("/datasets")
    for path in ("", "/file"):
        assert new_browser("theirs").get(f"{ROOT}/datasets/{dataset_id}{path}").status_code == 404
    assert f'href="{ROOT}/datasets/{dataset_id}/file">' in browser.show(f"/datasets/{dataset_id}")
    saved = "attachment; filename=\"x.jsonl\"; filename*=UTF-8''x.jsonl"
    file = httpx2.get(browser.get(f"{ROOT}/datasets/{dataset_id}/file").headers["location"])
    assert (file.content, file.headers["content-disposition"]) == (pairs.encode(), saved)
    page = browser.show(f"/datasets/{dataset_id}?model=tiny")
    assert 'ask b<mark class="trained"> b &lt;eos&gt;</mark>' in page
    assert "8 tokens, 4 of them trained on" in re.sub(r"\s+", " ", page)
    rejected = browser.get(f"{ROOT}/datasets/{dataset_id}", params={"model": EVIL})
    assert (rejected.status_code, "must be a local model or a hub id" in rejected.text) == (422, True)
    assert EVIL not in rejected.text


def test_pages_show_nothing_of_another_tenant(
    browser: Browser, new_browser: NewBrowser, paths: list[str], evil_job: str, dataset: str
) -> None:
    stranger = new_browser("theirs")
    for path in paths:
        response = stranger.get(ROOT + path)
        assert response.status_code == (404 if "job_" in path or "hook_" in path else 200), path
        for ours in (evil_job, dataset):
            assert ours not in response.text.replace(f"There is no job &#39;{evil_job}&#39;", ""), path
        if not path.startswith("/jobs?q"):
            assert "alert" not in response.text, path
    for path in (
        f"/jobs/{evil_job}/series",
        f"/jobs/{evil_job}/topology",
        f"/jobs/{evil_job}/checkpoints/ckpt_1/config.json",
    ):
        assert stranger.get(ROOT + path).status_code == 404
    for action in ("cancel", "pause", "stop"):
        assert stranger.submit(f"/jobs/{evil_job}/{action}").status_code == 404
    assert ">queued<" in browser.show(f"/jobs/{evil_job}")


def test_polling_an_unchanged_page_is_answered_304(browser: Browser, client: TestClient, attempt: Attempt) -> None:
    for path in ("/", "/jobs", *(f"/jobs/{attempt.job_id}{part}" for part in ("", "/series", "/topology"))):
        first = browser.get(ROOT + path)
        again = browser.get(ROOT + path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), path
        assert first.headers["cache-control"] == "private, no-cache"
    etag = browser.get(f"{ROOT}/jobs/{attempt.job_id}").headers["etag"]
    client.post(f"/jobs/{attempt.job_id}/cancel")
    assert browser.get(f"{ROOT}/jobs/{attempt.job_id}", headers={"If-None-Match": etag}).status_code == 200


def test_job_without_metrics_shows_its_error_and_no_empty_charts(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt
) -> None:
    path, parts = f"/jobs/{attempt.job_id}", ("data-charts", 'id="scores"')
    assert all(part in browser.show(path) for part in parts)
    with sessions.begin() as session:
        attempts.fail(session, attempt, fault=Fault.USER, code="x", message="too short", retry=False, max_failures=1)
    page = browser.show(path)
    assert page.count("Too short") == 2, "at the top and in the events"
    assert not any(part in page for part in parts)


def test_page_of_a_gradual_job_shows_the_rise_and_nothing_of_a_pruned_model(
    browser: Browser, client: TestClient, sessions: sessionmaker[Session], body: Json
) -> None:
    jobs: dict[str, Json] = {
        "gradual": {"prune": {"schedule": "gradual"}},
        "all": {},
        "seft": {"repair": {"density": 0.005}},
    }
    pages = {}
    for name, more in jobs.items():
        client.post("/jobs", json={**body, **more})
        with sessions.begin() as session:
            claimed = claims.claim(session, "gpu-1", 60)
            assert claimed is not None
            attempts.add_scores(session, claimed, {"dense": 12.0, "repaired": 18.0})
        pages[name] = browser.show(f"/jobs/{claimed.job_id}")
    assert {name for name, page in pages.items() if 'data-chart="sparsity"' in page} == {"gradual"}
    assert {name for name, page in pages.items() if "data-topology" in page} == {"gradual", "seft"}
    for part in ('class="score pruned"', "loss recovered", 'class="repair-bar"', ">pruning<"):
        assert {name for name, page in pages.items() if part in page} == {"all", "seft"}, part
    assert "perplexity 12 → 18" in visible(pages["gradual"])


def test_a_job_whose_pruning_lost_nothing_says_why_no_loss_was_recovered(
    browser: Browser, attempt: Attempt, sessions: sessionmaker[Session]
) -> None:
    for pruned, said in ((18.0, False), (12.0, True), (11.0, True)):
        with sessions.begin() as session:
            attempts.add_scores(session, attempt, {"dense": 12.0, "pruned": pruned, "repaired": 11.0})
        page = browser.show(f"/jobs/{attempt.job_id}")
        label = 'aria-label="Pruning did not reduce the quality"'
        assert ("pruning did not reduce the quality" in page, label in page) == (said, said)


def test_missing_page_is_answered_with_an_error_page(browser: Browser) -> None:
    for path in (
        "/nothing",
        "/jobs/job_1",
        f"/jobs/job_{'0' * 26}",
        "/jobs/\ud800".encode("utf-8", "replace").decode(),
    ):
        response = browser.get(ROOT + path)
        assert response.status_code == 404
        assert response.headers["content-type"].startswith("text/html")
        assert response.headers["x-request-id"] in response.text
        assert "GET /" not in response.text


def test_assets_are_cached_permanently_under_a_url_of_their_content(browser: Browser) -> None:
    page = browser.show("/")
    urls, total = re.findall(r'(?:src|href)="(/dashboard/assets/[^"]+)"', page), len(page)
    assert {url.partition("?")[0].rpartition(".")[2] for url in urls} >= {"js", "css"}
    for url in urls:
        response = browser.get(url)
        assert response.status_code == 200, url
        assert "immutable" in response.headers["cache-control"]
        assert re.search(r"\?v=[0-9a-f]{12}$", url)
        for other in (url[:-1], url.partition("?")[0]):
            assert browser.get(other).headers["cache-control"] == "no-cache", "the file of another version"
        total += len(response.content)
    assert total < 100_000, "the first page is too large"


def test_vendored_libraries_have_their_licences() -> None:
    names = {path.name for path in (ASSETS / "vendored").iterdir()}
    assert {name.partition(".")[0] for name in names} == {"htmx", "uPlot"}
    assert {"htmx.LICENSE.txt", "uPlot.LICENSE.txt"} <= names


def test_jobs_are_filtered_by_status_model_metadata_date_and_id(
    browser: Browser, client: TestClient, body: Json, new_client: NewClient
) -> None:
    specs: dict[str, Json] = {"one": {"metadata": {"team": "search"}}, "two": {}, "three": {"auto_start": False}}
    job_ids = {
        name: client.post("/jobs", json={**body, "suffix": name, **more}).json()["id"] for name, more in specs.items()
    }

    def listed(query: str) -> set[str]:
        page = browser.show(f"/jobs?{query}")
        return {name for name, job in job_ids.items() if job in page}

    assert listed("") == {"one", "two", "three"}
    assert listed("status=paused") == {"three"}
    assert listed("q=team%3Dsearch") == {"one"}
    assert listed("q=tiny") == {"one", "two", "three"}
    assert listed("q=tin") == set()
    assert listed("since=2020-01-01") == {"one", "two", "three"}
    assert listed("until=2020-01-01") == set()
    assert listed("until=9999-12-31") == {"one", "two", "three"}
    assert listed("since=9999-12-31") == set()
    assert listed("status=nonsense&since=yesterday") == {"one", "two", "three"}
    assert listed(f"after={job_ids['two']}") == {"one"}
    assert listed(f"after={job_ids['two']}&order=oldest") == {"three"}
    assert 'aria-sort="ascending"' in browser.show("/jobs?order=oldest&q=tiny")
    assert "q=tiny&amp;order=sparsest" in browser.show("/jobs?order=oldest&q=tiny")
    assert browser.get(f"{ROOT}/jobs?q={job_ids['two']}").headers["location"] == f"{ROOT}/jobs/{job_ids['two']}"


@pytest.mark.parametrize("selected", [0, 1, 7])
def test_too_few_or_too_many_jobs_are_not_compared(browser: Browser, job_id: str, selected: int) -> None:
    query = "&".join(f"job=job_{n:026}" for n in range(selected))
    assert f"You selected {selected}" in browser.show(f"/compare?{query}")


def test_comparison_shows_only_the_settings_that_differ(browser: Browser, client: TestClient, body: Json) -> None:
    jobs = [
        client.post("/jobs", json={**body, "sparsity": sparsity, "repair": {"steps": 70}}).json()["id"]
        for sparsity in (0.5, 0.61)
    ]
    text = visible(browser.show("/compare?" + "&".join(f"job={job}" for job in jobs)))
    assert "0.61" in text
    assert "repair.steps" not in text


def test_action_runs_and_an_impossible_one_is_reported(browser: Browser, job_id: str) -> None:
    page = browser.show(f"/jobs/{job_id}")
    assert "Saves the state and frees the device" in page
    assert browser.submit(f"/jobs/{job_id}/pause").headers["location"] == f"{ROOT}/jobs/{job_id}"
    assert ">paused<" in browser.show(f"/jobs/{job_id}")
    browser.submit(f"/jobs/{job_id}/cancel")
    response = browser.submit(f"/jobs/{job_id}/resume")
    assert response.headers["location"] == f"{ROOT}/jobs/{job_id}?refused=resume"
    assert "Resume is not possible: the job is cancelled" in browser.show(f"/jobs/{job_id}?refused=resume")
    assert browser.submit(f"/jobs/{job_id}/explode").status_code == 404


def test_ended_job_is_deleted_after_a_confirmation(
    browser: Browser, new_browser: NewBrowser, client: TestClient, result: str, body: Json
) -> None:
    job_id = result
    assert "Delete permanently" in browser.show(f"/jobs/{job_id}")
    user = client.post("/jobs", json={**body, "model": job_id}).json()["id"]
    assert "Delete permanently" not in browser.show(f"/jobs/{user}")
    assert "Delete permanently" not in new_browser("ours", Scope.READ).show(f"/jobs/{job_id}")
    refused = browser.submit(f"/jobs/{job_id}/delete")
    assert (refused.status_code, f"{user} uses the result of {job_id}" in refused.text) == (409, True)
    client.post(f"/jobs/{user}/cancel")
    assert browser.post(f"{ROOT}/jobs/{job_id}/delete").status_code == 403
    assert browser.submit(f"/jobs/{job_id}/delete").headers["location"] == f"{ROOT}/jobs"
    assert f'href="{ROOT}/jobs/{job_id}"' not in browser.show("/jobs")
    assert browser.get(f"{ROOT}/jobs/{job_id}").status_code == 404
    for path in ("/jobs/new", f"/datasets/{body['dataset']}", f"/jobs/{user}"):
        assert f'value="{job_id}"' not in browser.show(path), "a deleted model is not suggested"


def test_key_is_shown_once_and_recorded_in_the_audit_log(browser: Browser, app: Any) -> None:
    response = browser.submit("/keys", {"name": "nightly", "scope": "read"})
    secret = re.search(r"seft_[\w-]{40,}", response.text)
    assert secret
    assert response.headers["cache-control"] == "no-store"
    assert TestClient(app).get("/jobs", headers={"Authorization": f"Bearer {secret[0]}"}).status_code == 200
    page = browser.show("/keys")
    assert secret[0] not in page
    assert "create key" in page
    key_path = re.search(r"/keys/(key_\w+)/revoke", page)
    assert key_path
    assert browser.submit(f"/keys/{key_path[1]}/revoke").status_code == 303
    assert TestClient(app).get("/jobs", headers={"Authorization": f"Bearer {secret[0]}"}).status_code == 401
    assert browser.submit("/keys", {"name": "", "scope": "read"}).status_code == 422


def test_every_key_can_be_reached_and_revoked(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.dashboard.pages.keys.LIMIT", 2)
    for name in ("first", "second", "third"):
        browser.submit("/keys", {"name": name, "scope": "read"})
    names, path = list[str](), "/keys"
    while path:
        page = browser.show(path)
        names += re.findall(r'<b class="clip">([^<]+)</b>', page)
        older = re.search(r'href="/dashboard(/keys\?after=[^"]+)"', page)
        path = older[1] if older else ""
    assert names[:3] == ["third", "second", "first"]
    assert set(names[3:]) == {"a browser", "test"}
    response = browser.submit("/keys/key_1/revoke")
    assert response.status_code == 404


def test_request_with_an_invalid_parameter_is_answered_with_an_error_page(browser: Browser) -> None:
    response = browser.get(f"{ROOT}/jobs/new?cpu=maybe")
    assert response.status_code == 422
    assert response.headers["content-type"].startswith("text/html")
    assert "cpu: " in visible(response.text)


def test_form_with_an_unknown_charset_is_rejected(browser: Browser) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"}
    response = browser.post(f"{ROOT}/datasets", content=PART, headers=headers)
    assert response.status_code == 422
    assert "charset" in visible(response.text)


def test_invalid_dataset_is_rejected_with_an_error_per_line(browser: Browser, csrf: Callable[[], str]) -> None:
    def upload(name: str, content: bytes) -> Any:
        return browser.post(f"{ROOT}/datasets", data={"csrf": csrf()}, files={"file": (name, content)})

    response = upload("texts.jsonl", b'{"text": "a"}\nno json\n{"text": 7}\n')
    assert response.status_code == 422
    text = visible(response.text)
    assert "line 2" in text
    assert "line 3" in text
    assert "texts.jsonl" not in browser.show("/datasets")
    response = upload("texts.jsonl", b'{"text": "a"}\n{"text": "b"}\n')
    assert response.status_code == 303
    page = browser.show(response.headers["location"].removeprefix(ROOT))
    assert "Uploaded. The dataset is valid" in page
    assert "texts.jsonl" in page


@pytest.fixture
def csrf(browser: Browser) -> Callable[[], str]:
    return browser.csrf
