"""Whose turn it is, and how much of everything a tenant gets."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from core.access.audit import Caller
from core.access.keys import Scope
from core.datasets import datasets
from core.errors import Code, ProblemError
from core.jobs import attempts, fairness, jobs
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Job
from seft.data.records import Format
from tests.core.conftest import Sessions
from tests.core.jobs.test_attempts import LEASE, row

Make = Callable[..., str]


@pytest.fixture
def make(sessions: Sessions, spec: JobSpec) -> Make:
    with sessions.begin() as session:
        content = datasets.Content("1" * 64, 30, 2, Format.TEXT)
        theirs = datasets.add(session, "theirs", "texts.jsonl", content).id
    data = {"ours": spec.dataset, "theirs": theirs}

    def job(tenant: str, priority: int = 0, key: str | None = None) -> str:
        asked = spec.model_copy(update={"dataset": data[tenant], "priority": priority})
        with sessions.begin() as session:
            return jobs.create(session, tenant, asked, None, "", key_id=key)[0].id

    return job


def claim(sessions: Sessions, tenant_running: int = 0, key_running: int = 0) -> Attempt | None:
    with sessions.begin() as session:
        return attempts.claim(session, "w1", LEASE, tenant_running=tenant_running, key_running=key_running)


def claims(sessions: Sessions, count: int, **limits: int) -> list[str | None]:
    taken = [claim(sessions, **limits) for _ in range(count)]
    return [attempt.job_id if attempt else None for attempt in taken]


def test_tenants_take_turns_however_many_jobs_one_of_them_has_queued(sessions: Sessions, make: Make) -> None:
    ours = [make("ours") for _ in range(3)]
    theirs = [make("theirs") for _ in range(2)]
    assert claims(sessions, 5) == [ours[0], theirs[0], ours[1], theirs[1], ours[2]]


def test_priority_goes_before_fairness(sessions: Sessions, make: Make) -> None:
    ours = [make("ours", 1) for _ in range(2)]
    theirs = make("theirs")
    assert claims(sessions, 3) == [*ours, theirs]


def test_no_tenant_runs_more_jobs_than_it_may(sessions: Sessions, make: Make, settings: Settings) -> None:
    ours = [make("ours", 5) for _ in range(3)]
    theirs = make("theirs")
    assert claims(sessions, 4, tenant_running=2) == [ours[0], ours[1], theirs, None]
    with sessions.begin() as session:
        waiting = session.get_one(Job, ours[2])
        told = fairness.waiting_reason(session, waiting, settings.model_copy(update={"tenant_running": 2}))
        assert told is not None
        assert told["code"] == "tenant_limit"
        assert fairness.waiting_reason(session, waiting, settings) != told
        assert fairness.waiting_reason(session, session.get_one(Job, theirs), settings) is None


def test_no_key_runs_more_jobs_than_it_may(sessions: Sessions, make: Make, settings: Settings) -> None:
    mine = [make("ours", key="key_a") for _ in range(3)]
    other, nobodys = make("ours", key="key_b"), make("ours")
    assert claims(sessions, 5, key_running=2) == [*mine[:2], other, nobodys, None]
    with sessions.begin() as session:
        waiting = session.get_one(Job, mine[2])
        told = fairness.waiting_reason(session, waiting, settings.model_copy(update={"key_running": 2}))
    assert told == {"code": "key_limit", "message": "2 of the jobs of its key run, and no more than 2 may."}


def test_neither_tenant_nor_key_queues_more_jobs_than_it_may(
    sessions: Sessions, make: Make, settings: Settings
) -> None:
    make("ours", key="key_a")
    make("ours", key="key_b")

    def refused(tenant: str, key: str, **limits: int) -> str | None:
        caller = Caller(tenant, key, Scope.WRITE, "req")
        try:
            with sessions.begin() as session:
                fairness.require_waiting_quota(session, caller, settings.model_copy(update=limits))
        except ProblemError as error:
            return error.message if error.code is Code.LIMIT_REACHED else None
        return None

    assert refused("ours", "key_a") is None
    assert refused("ours", "key_a", tenant_waiting=3, key_waiting=2) is None
    assert refused("theirs", "key_c", tenant_waiting=2, key_waiting=1) is None
    assert "2 of your jobs wait; 2 may" in str(refused("ours", "key_c", tenant_waiting=2))
    assert "1 of this key's jobs wait; 1 may" in str(refused("ours", "key_a", key_waiting=1))


def test_a_job_that_newer_software_refuses_does_not_hide_the_next_one(sessions: Sessions, make: Make) -> None:
    old, next_one = make("ours"), make("theirs")
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET spec = '{}' WHERE id = :id"), {"id": old})
    assert claims(sessions, 2) == [next_one, None]
    assert row(sessions, old).status == "failed"


def test_no_tenant_stores_more_than_it_may_and_equal_files_count_once(sessions: Sessions, make: Make) -> None:
    """Both tenants have a dataset of 30 bytes; ours gets a checkpoint of 50."""
    make("ours", 5)
    attempt = claim(sessions)
    assert attempt is not None
    files = [{"name": name, "size": 25, "sha256": ""} for name in "ab"]
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=files, scores={}, measured={})
        datasets.add(session, "ours", "again.jsonl", datasets.Content("0" * 64, 30, 2, Format.TEXT))
        assert fairness.stored_bytes(session, "ours") == (30, 50)
        assert fairness.stored_bytes(session, "theirs") == (30, 0)

    def refused(limit: int, **content: Any) -> bool:
        try:
            with sessions.begin() as session:
                fairness.require_storage_quota(session, "ours", limit, **content)
        except ProblemError as error:
            return error.code is Code.LIMIT_REACHED
        return False

    assert [refused(limit) for limit in (0, 80, 81)] == [False, True, False]
    assert [refused(100, sha256="1" * 64, more=more) for more in (20, 21)] == [False, True]
    assert [refused(limit, sha256="0" * 64, more=30) for limit in (79, 80)] == [True, False]
    with sessions.begin() as session:
        session.execute(text("UPDATE datasets SET deleted_at = now() WHERE tenant = 'ours'"))
        session.execute(text("DELETE FROM checkpoints"))
        assert fairness.stored_bytes(session, "ours") == (0, 0)
