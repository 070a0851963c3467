"""The phases on a job's page, and how long each one took."""

import re

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from core.jobs import attempts
from core.jobs.attempts import Attempt, Fault
from core.states import Phase
from tests import claims
from tests.api.conftest import Json
from tests.api.dashboard.conftest import Browser, visible

PHASES = (Phase.LOADING, Phase.WRITING, Phase.EVALUATING, Phase.PRUNING, Phase.EVALUATING, Phase.TRAINING)


def run_phases(sessions: sessionmaker[Session], attempt: Attempt, *phases: Phase) -> None:
    """Run the phases. Ten seconds lie between any two events of the job, and the newest is ten seconds ago."""
    with sessions.begin() as session:
        for phase in phases:
            attempts.set_progress(session, attempt, phase=phase, progress=0.4, step=0)
        session.execute(
            text(
                "UPDATE job_events SET created_at = now() - (SELECT count(*) FROM job_events AS later"
                " WHERE later.type = 'phase.began' AND later.id >= job_events.id) * interval '10 s'"
                " WHERE type = 'phase.began'"
            )
        )


@pytest.fixture
def training(sessions: sessionmaker[Session], attempt: Attempt) -> Attempt:
    """Return an attempt that spent ten seconds in each stage up to the training."""
    run_phases(sessions, attempt, *PHASES)
    return attempt


def shown_phases(browser: Browser, job_id: str) -> list[tuple[str, str, str]]:
    """Return state, name and time of each stage."""
    matches = re.findall(
        r'<li class="(\w+)"[^>]*><span class="phase-name">([\w ]+)</span>(.*?)</li>',
        browser.show(f"/jobs/{job_id}"),
    )
    since = re.compile(r"since \d{4}-\d\d-\d\d \d\d:\d\d UTC")  # the script shows the time that has passed
    return [(state, phase, since.sub("…", visible(rest)).strip()) for state, phase, rest in matches]


def test_stages_are_in_their_order_and_an_evaluation_is_done_only_for_its_model(
    browser: Browser, training: Attempt
) -> None:
    assert shown_phases(browser, training.job_id) == [
        ("done", "loading", "10 s"),
        ("done", "writing", "10 s"),
        ("done", "evaluating dense", "10 s"),
        ("done", "pruning", "10 s"),
        ("done", "evaluating pruned", "10 s"),
        ("current", "training", "…"),
        ("pending", "evaluating repaired", ""),
        ("pending", "exporting", ""),
        ("pending", "uploading", ""),
    ]


def test_stage_in_which_a_job_failed_is_marked(
    browser: Browser, training: Attempt, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        attempts.fail(session, training, fault=Fault.USER, code="x", message="x", retry=False, max_failures=1)
    shown = shown_phases(browser, training.job_id)
    assert [phase for phase in shown if phase[0] == "failed"] == [("failed", "training", "10 s")]
    assert [state for state, _, _ in shown] == ["done"] * 5 + ["failed"] + ["pending"] * 3


def test_an_attempt_that_resumes_keeps_the_stages_of_earlier_attempts(
    browser: Browser, training: Attempt, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        attempts.release(session, training)
        second = claims.claim(session, "w2", 60)
    assert second is not None
    assert {state for state, _, _ in shown_phases(browser, training.job_id)} == {"pending"}
    run_phases(sessions, second, Phase.LOADING)
    shown = shown_phases(browser, training.job_id)
    assert [(state, time) for state, _, time in shown] == [("current", "…")] + [("pending", "")] * 8
    run_phases(sessions, second, Phase.TRAINING, Phase.EVALUATING)
    shown = shown_phases(browser, training.job_id)
    assert [(state, time) for state, _, time in shown[:7]] == [("done", "10 s")] * 6 + [("current", "…")]


def test_all_stages_of_a_job_that_succeeded_are_done(
    browser: Browser, training: Attempt, sessions: sessionmaker[Session]
) -> None:
    run_phases(sessions, training, Phase.EVALUATING, Phase.EXPORTING, Phase.UPLOADING)
    with sessions.begin() as session:
        attempts.publish(session, training, step=1, prefix="", sha256="", files=[], scores={}, measured={})
    shown = shown_phases(browser, training.job_id)
    assert [(state, time) for state, _, time in shown[:8]] == [("done", "10 s")] * 8


def test_job_that_only_prunes_neither_writes_nor_trains(browser: Browser, client: TestClient, body: Json) -> None:
    job = client.post("/jobs", json={**body, "repair": {"method": "none"}}).json()
    names = [name for _, name, _ in shown_phases(browser, job["id"])]
    assert names == ["loading", "evaluating dense", "pruning", "evaluating pruned", "exporting", "uploading"]
