"""The overview: which jobs it lists, and in what order."""

import re
from datetime import timedelta

from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.dashboard.formatting import size
from api.dashboard.pages.overview import SHOWN
from core.jobs import attempts, fairness
from core.jobs.attempts import Attempt, Fault
from core.tables import Job
from tests.api.conftest import Json
from tests.api.dashboard.conftest import Browser, visible


def test_overview_lists_waiting_jobs_in_queue_order(browser: Browser, client: TestClient, body: Json) -> None:
    created = [client.post("/jobs", json={**body, "seed": seed}).json()["id"] for seed in range(SHOWN + 1)]
    urgent = client.post("/jobs", json={**body, "priority": 1}).json()["id"]
    shown = re.findall(r'href="/dashboard/jobs/(job_\w+)"', browser.show("/"))
    assert shown == [urgent, *created[: SHOWN - 1]]


def test_overview_shows_failed_jobs_first_and_the_storage_in_use(
    browser: Browser, sessions: sessionmaker[Session], attempt: Attempt
) -> None:
    assert "Failed jobs" not in browser.show("/")
    with sessions.begin() as session:
        stored = sum(fairness.stored_bytes(session, "ours"))
        attempts.fail(
            session, attempt, fault=Fault.SYSTEM, code="x", message="disk is unreachable", retry=False, max_failures=1
        )
    text = " ".join(visible(browser.show("/")).split())
    advice = f"Create the job again with POST /jobs/{attempt.job_id}/clone, or ask the operator."
    row = f"Disk is unreachable. {advice} service error"
    assert text.index("Failed jobs") < text.index(row) < text.index("Running")
    assert f"Storage {size(stored)} in use" in text


def test_overview_lists_jobs_by_their_end(
    browser: Browser, client: TestClient, sessions: sessionmaker[Session], body: Json
) -> None:
    """A job may run for longer than failed jobs are shown."""
    older, newer, old = (client.post("/jobs", json={**body, "seed": seed}).json()["id"] for seed in range(3))
    with sessions.begin() as session:
        for job_id, status, days in ((older, "failed", 0), (newer, "failed", 1), (old, "failed", 8)):
            values = {"status": status, "finished_at": func.now() - timedelta(days=days)}
            session.execute(
                update(Job).where(Job.id == job_id).values(created_at=func.now() - timedelta(days=9), **values)
            )
    assert re.findall(r'href="/dashboard/jobs/(job_\w+)"', browser.show("/")) == [older, newer]
