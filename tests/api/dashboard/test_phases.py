"""The phases on a job's page, and how long each one took."""

import re

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core.jobs import attempts
from core.jobs.attempts import Attempt, Fault
from core.states import Phase
from tests.api.conftest import Json
from tests.api.dashboard.conftest import Browser, visible

PHASES = (Phase.LOADING, Phase.EVALUATING, Phase.WRITING, Phase.PRUNING, Phase.EVALUATING, Phase.TRAINING)


@pytest.fixture
def training(sessions: sessionmaker[Session], attempt: Attempt) -> Attempt:
    """Return an attempt that spent ten seconds in each phase, and was in one phase twice."""
    with sessions.begin() as session:
        for phase in PHASES:
            attempts.set_progress(session, attempt, phase=phase, progress=0.4, step=0)
        session.execute(
            text(
                "UPDATE job_events SET created_at = now() - (SELECT count(*) FROM job_events AS later"
                " WHERE later.type = 'phase.began' AND later.id >= job_events.id) * interval '10 s'"
                " WHERE type = 'phase.began'"
            )
        )
    return attempt


def shown_phases(browser: Browser, attempt: Attempt) -> list[tuple[str, str, str]]:
    """Return state, name and time of each phase."""
    matches = re.findall(
        r'<li class="(\w+)"[^>]*><span class="phase-name">(\w+)</span>(.*?)</li>',
        browser.show(f"/jobs/{attempt.job_id}"),
    )
    return [(state, phase, visible(rest).strip()) for state, phase, rest in matches]


def test_phases_are_done_current_or_pending_and_repeated_runs_are_added_up(browser: Browser, training: Attempt) -> None:
    assert shown_phases(browser, training) == [
        ("done", "loading", "10 s"),
        ("done", "writing", "10 s"),
        ("done", "pruning", "10 s"),
        ("current", "training", "…"),
        ("done", "evaluating", "20 s"),
        ("pending", "exporting", ""),
        ("pending", "uploading", ""),
    ]


def test_phase_in_which_a_job_failed_is_marked(
    browser: Browser, training: Attempt, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        attempts.fail(session, training, fault=Fault.USER, code="x", message="x", retry=False, max_failures=1)
    assert [phase for phase in shown_phases(browser, training) if phase[0] == "failed"] == [
        ("failed", "training", "10 s")
    ]


def test_job_that_only_prunes_neither_writes_nor_trains(browser: Browser, client: TestClient, body: Json) -> None:
    job = client.post("/jobs", json={**body, "repair": {"method": "none"}}).json()
    page = browser.show(f"/jobs/{job['id']}")
    shown = re.findall(r'<span class="phase-name">(\w+)</span>', page)
    assert shown == ["loading", "pruning", "evaluating", "exporting", "uploading"]
