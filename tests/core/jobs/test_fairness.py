"""Order of the queue, and limits per tenant and per key."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core.access.audit import Caller
from core.access.keys import Scope
from core.datasets import datasets
from core.errors import Code, ProblemError
from core.jobs import attempts, fairness, jobs
from core.jobs.attempts import Attempt, Fault
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Job
from seft.data.records import Format
from tests import claims
from tests.core.conftest import Sessions, accepted
from tests.core.jobs.test_attempts import LEASE, row

MakeFor = Callable[..., str]


@pytest.fixture
def make(sessions: Sessions, spec: JobSpec) -> MakeFor:
    with sessions.begin() as session:
        content = datasets.Content("1" * 64, 4096, 2, Format.TEXT)
        theirs = datasets.add(session, "theirs", "texts.jsonl", content).id
    data = {"ours": spec.dataset, "theirs": theirs}

    def job(tenant: str, priority: int = 0, key: str | None = None) -> str:
        request = spec.model_copy(update={"dataset": data[tenant], "priority": priority})
        with sessions.begin() as session:
            return jobs.create(session, tenant, request, None, "", key_id=key).id

    return job


def claim(sessions: Sessions, **limits: Any) -> Attempt | None:
    with sessions.begin() as session:
        return claims.claim(session, "w1", LEASE, **limits)


def claim_each(sessions: Sessions, count: int, **limits: Any) -> list[str | None]:
    """Claim jobs that all keep running."""
    claimed = [claim(sessions, **limits) for _ in range(count)]
    return [attempt.job_id if attempt else None for attempt in claimed]


def served(sessions: Sessions, count: int, **limits: Any) -> list[str]:
    """Return the tenants that a single worker serves, one after the other."""
    tenants = []
    for _ in range(count):
        attempt = claim(sessions, **limits)
        assert attempt is not None
        tenants.append(attempt.tenant)
        with sessions.begin() as session:
            attempts.fail(session, attempt, fault=Fault.USER, code="x", message="", retry=False, max_failures=1)
    return tenants


def test_tenants_take_turns_regardless_of_how_many_jobs_each_has_queued(sessions: Sessions, make: MakeFor) -> None:
    ours = [make("ours") for _ in range(3)]
    theirs = [make("theirs") for _ in range(2)]
    assert claim_each(sessions, 5) == [ours[0], theirs[0], ours[1], theirs[1], ours[2]]


def test_tenants_take_turns_on_a_single_worker(sessions: Sessions, make: MakeFor) -> None:
    for _ in range(5):
        make("ours", 100)
    for _ in range(2):
        make("theirs")
    assert served(sessions, 7) == ["ours", "theirs", "ours", "theirs", "ours", "ours", "ours"]


def test_a_tenant_with_fewer_running_jobs_comes_first_whoever_had_the_last_turn(
    sessions: Sessions, make: MakeFor
) -> None:
    ours = [make("ours") for _ in range(5)]
    assert claim_each(sessions, 3) == ours[:3]
    theirs = [make("theirs") for _ in range(3)]
    assert claim_each(sessions, 4) == [*theirs, ours[3]]


def test_priority_orders_the_jobs_of_one_tenant_only(sessions: Sessions, make: MakeFor) -> None:
    late, urgent = make("ours"), make("ours", 100)
    theirs = make("theirs", -100)
    with sessions.begin() as session:
        places = [jobs.position(session, session.get_one(Job, job_id)) for job_id in (late, urgent, theirs)]
    assert places == [3, 1, 2]
    assert claim_each(sessions, 3) == [urgent, theirs, late]


def test_a_tenant_with_a_larger_weight_gets_more_workers_and_more_turns(sessions: Sessions, make: MakeFor) -> None:
    for _ in range(8):
        make("ours")
        make("theirs")
    weights = {"theirs": 3.0}
    turns = served(sessions, 8, weights=weights)
    assert (turns.count("ours"), turns.count("theirs")) == (2, 6)
    for _ in range(8):
        make("theirs")
    claimed = [claim(sessions, weights=weights) for _ in range(8)]
    tenants = [attempt.tenant for attempt in claimed if attempt]
    assert (tenants.count("ours"), tenants.count("theirs")) == (2, 6)


def test_a_tenant_that_was_idle_gets_no_extra_turns(sessions: Sessions, make: MakeFor) -> None:
    for _ in range(6):
        make("ours")
    assert served(sessions, 3) == ["ours"] * 3
    for _ in range(3):
        make("theirs")
    assert served(sessions, 4) == ["theirs", "ours", "theirs", "ours"]


def test_a_tenant_that_was_idle_since_its_last_turn_gets_no_extra_turns(sessions: Sessions, make: MakeFor) -> None:
    make("theirs")
    for _ in range(9):
        make("ours")
    assert served(sessions, 7).count("theirs") == 1
    for _ in range(4):
        make("theirs")
    assert served(sessions, 4).count("theirs") == 2


def test_a_job_that_no_worker_can_run_does_not_hold_up_other_tenants(sessions: Sessions, make: MakeFor) -> None:
    stuck, theirs, ours = make("ours", 9), make("theirs"), make("ours")
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET spec_version = 1000 WHERE id = :id"), {"id": stuck})
    assert set(claim_each(sessions, 2)) == {theirs, ours}
    assert claim(sessions) is None


def test_only_the_first_jobs_of_a_tenant_are_considered(
    sessions: Sessions, make: MakeFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, theirs, ours = [make("ours", 9) for _ in range(3)], make("theirs"), make("ours")
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET spec_version = 1000 WHERE id = ANY(:ids)"), {"ids": stuck})
    monkeypatch.setattr(fairness, "CONSIDERED", 3)
    assert claim_each(sessions, 2) == [theirs, None]
    monkeypatch.setattr(fairness, "CONSIDERED", 4)
    assert claim_each(sessions, 1) == [ours]


def test_limits_per_tenant_are_on_by_default(settings: Settings) -> None:
    assert settings.tenant_running > 0
    assert settings.tenant_waiting > 0


def test_running_jobs_per_tenant_are_limited(sessions: Sessions, make: MakeFor, settings: Settings) -> None:
    ours = [make("ours", 5) for _ in range(3)]
    theirs = make("theirs")
    assert claim_each(sessions, 4, tenant_running=2) == [ours[0], theirs, ours[1], None]
    with sessions.begin() as session:
        waiting = session.get_one(Job, ours[2])
        reason = fairness.waiting_reason(session, waiting, settings.model_copy(update={"tenant_running": 2}))
        assert reason is not None
        assert reason["code"] == "tenant_limit"
        assert fairness.waiting_reason(session, waiting, settings) != reason
        assert fairness.waiting_reason(session, session.get_one(Job, theirs), settings) is None


def test_running_jobs_per_key_are_limited(sessions: Sessions, make: MakeFor, settings: Settings) -> None:
    mine = [make("ours", key="key_a") for _ in range(3)]
    other, nobodys = make("ours", key="key_b"), make("ours")
    assert claim_each(sessions, 5, key_running=2) == [*mine[:2], other, nobodys, None]
    with sessions.begin() as session:
        waiting = session.get_one(Job, mine[2])
        reason = fairness.waiting_reason(session, waiting, settings.model_copy(update={"key_running": 2}))
    assert reason == {
        "code": "key_limit",
        "message": "At most 2 of the jobs of its key can run, and that many run now.",
    }


def test_jobs_of_a_key_at_its_limit_do_not_hide_those_of_other_keys(
    sessions: Sessions, make: MakeFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fairness, "CONSIDERED", 3)
    mine = [make("ours", 9, key="key_a") for _ in range(5)]
    other, nobodys = make("ours", key="key_b"), make("ours")
    assert claim_each(sessions, 4, key_running=1) == [mine[0], other, nobodys, None]


@pytest.mark.parametrize("waiting", [0, 4])
def test_concurrent_requests_cannot_exceed_the_limit_of_waiting_jobs(
    sessions: Sessions, spec: JobSpec, settings: Settings, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """This is also true if the limit is so high that the first requests of a tenant take no lock."""
    monkeypatch.setattr(fairness, "CONCURRENT", 4)
    caller = Caller("ours", "key_a", Scope.WRITE, "req")
    with sessions.begin() as session:
        for _ in range(waiting):
            jobs.create(session, "ours", spec, None, "")

    def create(session: Session, _: int) -> None:
        fairness.require_waiting_quota(session, caller, settings.model_copy(update={"tenant_waiting": waiting + 2}))
        jobs.create(session, "ours", spec, None, "")

    assert accepted(sessions, create) == 2


def test_concurrent_requests_cannot_exceed_the_limit_of_stored_bytes(sessions: Sessions) -> None:
    def add(session: Session, number: int) -> None:
        content = datasets.Content(str(number) * 64, 10, 2, Format.TEXT)
        fairness.require_storage_quota(session, "ours", 20, sha256=content.sha256, more=content.bytes)
        datasets.add(session, "ours", "texts.jsonl", content)

    assert accepted(sessions, add) == 2


@pytest.mark.parametrize("concurrent", [0, 1, fairness.CONCURRENT])
def test_waiting_jobs_per_tenant_and_per_key_are_limited(
    sessions: Sessions, make: MakeFor, settings: Settings, monkeypatch: pytest.MonkeyPatch, concurrent: int
) -> None:
    """The limits are the same whether requests take a lock only near a limit, or always."""
    monkeypatch.setattr(fairness, "CONCURRENT", concurrent)
    make("ours", key="key_a")
    make("ours", key="key_b")

    def rejection(tenant: str, key: str, **limits: int) -> str | None:
        caller = Caller(tenant, key, Scope.WRITE, "req")
        try:
            with sessions.begin() as session:
                fairness.require_waiting_quota(session, caller, settings.model_copy(update=limits))
        except ProblemError as error:
            return error.message if error.code is Code.LIMIT_REACHED else None
        return None

    assert rejection("ours", "key_a") is None
    assert rejection("ours", "key_a", tenant_waiting=3, key_waiting=2) is None
    assert rejection("theirs", "key_c", tenant_waiting=2, key_waiting=1) is None
    assert "At most 2 of your jobs can wait, and that many wait now" in str(
        rejection("ours", "key_c", tenant_waiting=2)
    )
    assert "At most 1 of this key's jobs can wait, and that many wait now" in str(
        rejection("ours", "key_a", key_waiting=1)
    )


def test_a_job_with_an_invalid_request_does_not_block_the_next_one(sessions: Sessions, make: MakeFor) -> None:
    old, next_one = make("ours"), make("theirs")
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET spec = '{}' WHERE id = :id"), {"id": old})
    assert claim_each(sessions, 2) == [next_one, None]
    assert row(sessions, old).status == "failed"


def test_stored_bytes_are_limited_and_equal_datasets_count_once(sessions: Sessions, make: MakeFor) -> None:
    """Both tenants have a dataset of 4096 bytes. Ours gets a checkpoint of 50 bytes."""
    make("ours", 5)
    attempt = claim(sessions)
    assert attempt is not None
    files = [{"name": name, "size": 25, "sha256": ""} for name in "ab"]
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=files, scores={}, measured={})
        datasets.add(session, "ours", "again.jsonl", datasets.Content("0" * 64, 4096, 2, Format.TEXT))
        assert fairness.stored_bytes(session, "ours") == (4096, 50, 0)
        assert fairness.stored_bytes(session, "theirs") == (4096, 0, 0)

    def is_rejected(limit: int, **content: Any) -> bool:
        try:
            with sessions.begin() as session:
                fairness.require_storage_quota(session, "ours", limit, **content)
        except ProblemError as error:
            return error.code is Code.LIMIT_REACHED
        return False

    assert [is_rejected(limit) for limit in (0, 4146, 4147)] == [False, True, False]
    assert [is_rejected(4166, sha256="1" * 64, more=more) for more in (20, 21)] == [False, True]
    assert [is_rejected(limit, sha256="0" * 64, more=4096) for limit in (4145, 4146)] == [True, False]
    with sessions.begin() as session:
        session.execute(text("UPDATE datasets SET deleted_at = now() WHERE tenant = 'ours'"))
        session.execute(text("DELETE FROM checkpoints"))
        assert fairness.stored_bytes(session, "ours") == (0, 0, 0)
