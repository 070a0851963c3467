"""Pushes of a result: how many, which try may write, and the pauses between tries. `tests.worker` does the pushes."""

import secrets
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from sqlalchemy import Interval, func, select, type_coerce, update
from sqlalchemy.orm import Session

from core.errors import Code, ProblemError
from core.jobs import attempts, pushes
from core.jobs.pushes import ClaimedPush
from core.spec_parts import PushSpec
from core.tables import Job, Push
from core.webhooks import JITTER, RETRY_DELAYS
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import claimed


@pytest.fixture
def job_id(sessions: Sessions, make_job: MakeJob) -> str:
    """A job whose result was published."""
    made, attempt = make_job(), claimed(sessions)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    return made


def request(sessions: Sessions, job_id: str, revision: str = "main", tenant: str = "ours") -> Push:
    with sessions.begin() as session:
        target = PushSpec(repository="acme/sparse", revision=revision)
        push = pushes.request(session, session.get_one(Job, job_id), target)
        push.tenant = tenant
        return push


def claim(sessions: Sessions) -> ClaimedPush:
    """Claim the push, whose lease or pause has ended."""
    with sessions.begin() as session:
        session.execute(update(Push).where(Push.due_at.is_not(None)).values(due_at=func.now() - timedelta(seconds=1)))
    return claim_due(sessions)


def claim_due(sessions: Sessions) -> ClaimedPush:
    """Claim the next push. Another worker can claim it when its lease has ended."""
    with sessions.begin() as session:
        push = pushes.claim(session)
        assert push is not None
        assert lease(session, push) == pushes.LEASE
    return push


def lease(session: Session, push: ClaimedPush) -> timedelta:
    """Return the time until another worker can claim the push."""
    return session.scalars(select(type_coerce(Push.due_at - func.now(), Interval)).where(Push.id == push.id)).one()


def test_a_try_of_an_earlier_request_writes_nothing_even_if_a_newer_try_has_its_number(
    sessions: Sessions, job_id: str
) -> None:
    request(sessions, job_id)
    old, failed = claim(sessions), claim(sessions)
    with sessions.begin() as session:
        pushes.record_failure(session, failed, "hub_refused", "It was refused.", retry=False)
    request(sessions, job_id)
    current = claim(sessions)
    assert (old.id, old.number, failed.number) == (current.id, current.number, 2)
    with sessions.begin() as session:
        pushes.record_success(session, old, "https://hub.example/commit/1")
        assert not pushes.renew(session, old)
    with sessions.begin() as session:
        (row,) = pushes.list_all(session, job_id)
        assert (row.state, row.commit_url) == ("running", None)
        assert pushes.renew(session, current)
        assert lease(session, current) == pushes.LEASE


def test_a_job_is_pushed_to_a_limited_number_of_branches_but_again_to_the_same_ones(
    sessions: Sessions, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushes, "MAX_TARGETS", 1)
    first = request(sessions, job_id)
    with pytest.raises(ProblemError, match="at most 1 branches") as error:
        request(sessions, job_id, "other")
    assert error.value.code is Code.LIMIT_REACHED
    assert request(sessions, job_id).id == first.id


@pytest.mark.parametrize("choose", [min, max])
def test_the_pauses_between_the_tries_grow_and_differ_at_random(
    sessions: Sessions, job_id: str, choose: Callable[[Sequence[float]], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "choice", choose)
    request(sessions, job_id)
    pauses = []
    for _ in RETRY_DELAYS:
        push = claim(sessions)
        with sessions.begin() as session:
            pushes.record_failure(session, push, "hub_unreachable", "It was down.", retry=True)
            session.flush()
            seconds = func.extract("epoch", Push.due_at - func.now())
            pauses.append(float(session.scalars(select(seconds)).one()))
    assert pauses == pytest.approx([delay * choose(JITTER) for delay in RETRY_DELAYS])


def test_tenants_take_turns(sessions: Sessions, job_id: str) -> None:
    for revision, tenant in (("a", "ours"), ("b", "ours"), ("c", "ours"), ("d", "theirs"), ("e", "theirs")):
        request(sessions, job_id, revision, tenant)
    served = []
    for _ in range(5):
        push = claim_due(sessions)
        with sessions.begin() as session:
            pushes.record_success(session, push, "")
        served.append(push.tenant)
    assert served == ["ours", "theirs", "ours", "theirs", "ours"]


def test_a_tenant_whose_pushes_are_in_work_comes_last(sessions: Sessions, job_id: str) -> None:
    for revision in "abcd":
        request(sessions, job_id, revision)
    assert [claim_due(sessions).tenant for _ in range(3)] == ["ours"] * 3
    for revision in "efg":
        request(sessions, job_id, revision, "theirs")
    assert [claim_due(sessions).tenant for _ in range(4)] == ["theirs"] * 3 + ["ours"]


def test_a_push_whose_worker_died_does_not_put_its_tenant_last(sessions: Sessions, job_id: str) -> None:
    request(sessions, job_id, "a")
    claim_due(sessions)
    for revision in "bc":
        request(sessions, job_id, revision, "theirs")
        push = claim_due(sessions)
        with sessions.begin() as session:
            pushes.record_success(session, push, "")
    request(sessions, job_id, "d", "theirs")
    assert claim(sessions).tenant == "ours", "the other tenant had two turns"
