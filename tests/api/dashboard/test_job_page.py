"""The page of a job says what the job does now, and shows only what it can have."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.events import DESCRIPTIONS
from core.access import hub_tokens
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.states import STATUS_EVENT_PREFIX, Reason, Transition
from core.tables import Job
from tests.api.conftest import Json
from tests.api.dashboard.conftest import Browser, visible

Sessions = sessionmaker[Session]
ROOT = Path(__file__).parents[3]


def text_of(browser: Browser, path: str) -> str:
    return " ".join(visible(browser.show(path)).split())


def change_spec(sessions: Sessions, job_id: str, **values: Any) -> None:
    """Change fields of the stored request."""
    with sessions.begin() as session:
        job = session.get_one(Job, job_id)
        job.spec = {**job.spec, **values}


def test_job_with_a_pending_stop_is_stopping_only_while_it_runs(
    browser: Browser, client: TestClient, attempt: Attempt, sessions: Sessions
) -> None:
    path = f"/jobs/{attempt.job_id}"
    with sessions.begin() as session:
        attempts.save_resume(session, attempt, {"step": 1, "files": []})
    client.post(f"{path}/stop")
    assert ">stopping<" in browser.show(path)
    with sessions.begin() as session:
        attempts.release(session, attempt)
    for status in ("queued", "paused"):
        page = browser.show(path)
        assert (f">{status}<" in page, ">stopping<" in page) == (True, False)
        assert "A stop was requested: when the job runs again, it publishes the model." in page
        client.post(f"{path}/pause")


def test_run_time_leaves_out_pauses(
    browser: Browser, client: TestClient, attempt: Attempt, sessions: Sessions, body: Json
) -> None:
    path = f"/jobs/{attempt.job_id}"
    assert "Run time \N{EN DASH}" in text_of(browser, path)
    with sessions.begin() as session:
        attempts.heartbeat(session, attempt, 60, 90)
        session.execute(update(Job).values(started_at=func.now() - timedelta(hours=5)))
    client.post(f"{path}/cancel")
    assert "Run time 1 min 30 s" in text_of(browser, path)
    other = client.post("/jobs", json={**body, "seed": 1}).json()["id"]
    assert "Run time 1 min 30 s \N{EN DASH}" in text_of(browser, f"/compare?job={attempt.job_id}&job={other}")
    with sessions.begin() as session:
        session.execute(update(Job).values(run_seconds=0))
    assert "Run time 5 h 00 min" in text_of(browser, path), "older software did not count"


def test_job_that_keeps_the_zeros_of_its_model_has_no_target(browser: Browser, result: str, sessions: Sessions) -> None:
    path = f"/jobs/{result}"
    assert 'class="target"' in browser.show(path)
    change_spec(sessions, result, sparsity=0.0)
    page = browser.show(path)
    assert 'class="bar"' in page
    assert 'class="target"' not in page
    assert "the job keeps the zeros of its model" in page
    for each in (path, "/jobs", "/"):
        text = text_of(browser, each)
        assert "zeros kept" in text, each
        assert " 0 % ·" not in text, each


def test_job_that_only_prunes_shows_no_results_of_a_repair(browser: Browser, result: str, sessions: Sessions) -> None:
    parts = ('class="repair-bar"', 'class="score repaired"', "loss recovered", "<dt>Step</dt>", "data-charts")
    with sessions.begin() as session:
        scores = {"dense": 12.0, "pruned": 90.0, "repaired": 20.0}
        session.execute(update(Job).values(scores=scores))
    page = browser.show(f"/jobs/{result}")
    assert [part for part in parts if part not in page] == []
    with sessions.begin() as session:
        repair = session.get_one(Job, result).spec["repair"]
        session.execute(update(Job).values(scores={"dense": 12.0, "pruned": 90.0}))
    change_spec(sessions, result, repair={**repair, "method": "none"})
    page = browser.show(f"/jobs/{result}")
    assert [part for part in parts if part in page] == []
    assert 'class="score pruned"' in page
    assert 'aria-label="Not repaired yet"' not in browser.show("/") + browser.show("/jobs")


def test_repair_that_made_the_model_worse_is_not_shown_as_a_success(
    browser: Browser, attempt: Attempt, sessions: Sessions
) -> None:
    for repaired, kind, label in ((20.0, "recovered", "% of the loss recovered"), (90.0, "worse", "Worse after the")):
        with sessions.begin() as session:
            attempts.add_scores(session, attempt, {"dense": 12.0, "pruned": 60.0, "repaired": repaired})
        page = browser.show(f"/jobs/{attempt.job_id}")
        assert f'class="score {kind}"' in page
        assert re.search(f'aria-label="[^"]*{label}', page)


def test_job_that_waits_for_space_can_be_paused_until_its_user_resumes_it(
    browser: Browser, client: TestClient, attempt: Attempt, sessions: Sessions
) -> None:
    path = f"/jobs/{attempt.job_id}"
    with sessions.begin() as session:
        attempts.pause_for(session, attempt, Reason.DISK_FULL, "The disk is full.", 10**15)
    assert f'action="/dashboard{path}/pause"' in browser.show(path)
    browser.submit(f"{path}/pause")
    assert client.get(path).json()["reason"]["code"] == Reason.ASKED
    assert f'action="/dashboard{path}/pause"' not in browser.show(path)


@pytest.mark.parametrize(
    ("repository", "revision", "wrong"), [("acme/x", "a..b", "revision"), ("x", "main", "repository")]
)
def test_form_to_push_marks_the_field_that_the_service_refuses(
    browser: Browser, result: str, repository: str, revision: str, wrong: str
) -> None:
    response = browser.submit(f"/jobs/{result}/push", {"repository": repository, "revision": revision})
    assert response.status_code == 422
    assert re.findall(r'id="(\w+)-error"', response.text) == [wrong]


def test_form_to_push_shows_an_error_that_belongs_to_none_of_its_fields(
    browser: Browser, result: str, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        hub_tokens.put(session, "ours", "damaged", "acme")
    response = browser.submit(f"/jobs/{result}/push", {"repository": "acme/x", "revision": "main"})
    assert response.status_code == 422
    assert re.findall(r'id="(\w+)-error"', response.text) == ["repository"]
    assert "hub token cannot be decrypted" in response.text


def test_every_type_of_event_has_a_description() -> None:
    sources = [path.read_text() for folder in ("core", "worker") for path in (ROOT / folder).rglob("*.py")]
    literals = {name for source in sources for name in re.findall(r'_event\([^")]*"([a-z]+\.[a-z_]+)"', source)}
    assert "state.saved" in literals
    changes = {f"{STATUS_EVENT_PREFIX}{change}" for change in Transition if change is not Transition.DELETED}
    assert literals | changes <= set(DESCRIPTIONS)


def test_job_that_hung_shows_what_hung_and_not_the_stacks_of_its_threads(
    browser: Browser, attempt: Attempt, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        data = {"message": "No step for 600 s.", "output": "Thread 0x7f"}
        attempts.add_event(session, attempt, "attempt.hung", data)
    page = browser.show(f"/jobs/{attempt.job_id}")
    assert "No step for 600 s." in page
    assert "Thread 0x7f" not in page


def test_lists_that_are_cut_say_so(
    browser: Browser, client: TestClient, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = {"the newest 1;": f"/jobs/{job_id}", "the newest 1 changes": "/keys", "Show all queued jobs": "/"}
    client.post(f"/jobs/{job_id}/pause")
    client.post(f"/jobs/{job_id}/resume")
    for note, path in notes.items():
        assert note not in text_of(browser, path), path
    for limit in ("job.EVENTS", "keys.AUDIT_LIMIT"):
        monkeypatch.setattr(f"api.dashboard.pages.{limit}", 1)
    monkeypatch.setattr("api.dashboard.pages.overview.SHOWN", 1)
    client.post("/jobs", json={**client.get(f"/jobs/{job_id}").json()["spec"], "seed": 5})
    for note, path in notes.items():
        assert note in text_of(browser, path), path


def test_search_suggests_only_models_that_it_filters_by(
    browser: Browser, client: TestClient, result: str, body: Json
) -> None:
    assert client.post("/jobs", json={**body, "model": result}).status_code == 202
    page = browser.show("/jobs")
    suggested = page[page.index("<datalist") : page.index("</datalist>")]
    assert re.findall(r'<option value="([^"]*)"', suggested) == ["tiny"]
