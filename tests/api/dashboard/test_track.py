"""The phases on a job's page, and how long each took."""

import re

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from core.jobs import attempts
from core.jobs.attempts import Attempt, Fault
from core.states import Phase
from tests.api.dashboard.conftest import Browser, visible

BEGUN = (Phase.LOADING, Phase.EVALUATING, Phase.PRUNING, Phase.EVALUATING, Phase.TRAINING)


@pytest.fixture
def training(sessions: sessionmaker[Session], attempt: Attempt) -> Attempt:
    """Has been in each phase for ten seconds, and twice in one."""
    with sessions.begin() as session:
        for phase in BEGUN:
            attempts.set_progress(session, attempt, phase=phase, progress=0.4, step=0)
        session.execute(
            text(
                "UPDATE job_events SET created_at = now() - (SELECT count(*) FROM job_events AS later"
                " WHERE later.type = 'phase.began' AND later.id >= job_events.id) * interval '10 s'"
                " WHERE type = 'phase.began'"
            )
        )
    return attempt


def track(browser: Browser, attempt: Attempt) -> list[tuple[str, str, str]]:
    """Standing, name and time of each phase."""
    found = re.findall(
        r'<li class="(\w+)"[^>]*><span class="leg">(\w+)</span>(.*?)</li>', browser.show(f"/jobs/{attempt.job_id}")
    )
    return [(standing, phase, visible(rest).strip()) for standing, phase, rest in found]


def test_phases_are_done_now_or_ahead_and_their_turns_are_added_up(browser: Browser, training: Attempt) -> None:
    assert track(browser, training) == [
        ("done", "loading", "10 s"),
        ("done", "pruning", "10 s"),
        ("now", "training", "…"),
        ("done", "evaluating", "20 s"),
        ("ahead", "exporting", ""),
        ("ahead", "uploading", ""),
    ]


def test_the_phase_in_which_a_job_failed_is_marked(
    browser: Browser, training: Attempt, sessions: sessionmaker[Session]
) -> None:
    with sessions.begin() as session:
        attempts.fail(session, training, fault=Fault.USER, code="x", message="x", retry=False, max_failures=1)
    assert [each for each in track(browser, training) if each[0] == "broken"] == [("broken", "training", "10 s")]
