"""Who may take which job: what a worker has against what a job needs."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text, update

from core import workers
from core.capability import UNLIMITED, Capability
from core.jobs import attempts, fairness
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.specs import SPEC_VERSION
from core.states import Reason, Status
from core.tables import Job, Worker
from tests.core.conftest import GPU, MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE, row

SWEEP = 10.0


def take(sessions: Sessions, has: Capability) -> Attempt | None:
    with sessions.begin() as session:
        return attempts.claim(session, "w1", LEASE, has=has)


def taken(sessions: Sessions, has: Capability) -> Attempt:
    attempt = take(sessions, has)
    assert attempt is not None
    return attempt


def need(sessions: Sessions, **values: Any) -> None:
    with sessions.begin() as session:
        session.execute(update(Job).values(**values))


@pytest.mark.parametrize(
    ("needs", "able"),
    [
        ({}, True),
        ({"device": "cuda", "memory": GPU.memory, "disk": GPU.disk}, True),
        ({"device": "cpu"}, False),
        ({"memory": GPU.memory + 1}, False),
        ({"disk": GPU.disk + 1}, False),
    ],
    ids=str,
)
def test_a_worker_takes_what_it_can_do_and_is_counted_on_for_nothing_else(
    needs: dict[str, Any], able: bool, sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job()
    need(sessions, needs=needs)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
        assert workers.count_able(session, row(sessions, job_id), SWEEP) == (1, int(able))
    assert (take(sessions, GPU) is not None) is able


def test_a_worker_with_too_little_room_passes_over_to_the_next_job(sessions: Sessions, make_job: MakeJob) -> None:
    large, small = make_job(5), make_job()
    attempt = taken(sessions, UNLIMITED)
    with sessions.begin() as session:
        attempts.hold_for_space(session, attempt, Reason.DISK_FULL, "m", needs=100)
        session.execute(text("UPDATE jobs SET status = 'queued', reason = NULL WHERE status = 'paused'"))
    assert taken(sessions, replace(UNLIMITED, disk=99)).job_id == small
    assert take(sessions, replace(UNLIMITED, disk=99)) is None
    assert taken(sessions, replace(UNLIMITED, disk=100)).job_id == large


def test_a_job_goes_on_from_its_state_on_the_kind_of_device_that_made_it(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    for saves in (False, True):
        attempt = taken(sessions, GPU)
        with sessions.begin() as session:
            if saves:
                attempts.save_resume(session, attempt, {"step": 0, "files": []})
            attempts.release(session, attempt)
        if not saves:
            with sessions.begin() as session:
                attempts.release(session, taken(sessions, UNLIMITED))
    assert take(sessions, UNLIMITED) is None
    assert taken(sessions, GPU).job_id == job_id


def run_out(sessions: Sessions, attempt: Attempt) -> bool:
    """Memory ends in training, where one window at a time can be tried."""
    with sessions.begin() as session:
        larger = workers.has_larger(session, attempt.has, SWEEP)
        return attempts.fail_for_memory(session, attempt, message="m", micro_batch=1, larger=larger, max_failures=3)


def test_memory_that_does_not_do_is_looked_for_on_a_larger_device_until_there_is_none(
    sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job()
    large = replace(GPU, memory=2 * GPU.memory)
    with sessions.begin() as session:
        workers.record_heartbeat(session, "small", GPU)
        workers.record_heartbeat(session, "large", large)
        workers.record_heartbeat(session, "processor", UNLIMITED)
    for has, micro_batch in ((GPU, None), (GPU, 1), (large, None)):
        attempt = taken(sessions, has)
        assert attempt.micro_batch == micro_batch
        assert run_out(sessions, attempt)
    assert row(sessions, job_id).failures == 1
    assert take(sessions, GPU) is None
    assert take(sessions, UNLIMITED) is None
    assert not run_out(sessions, taken(sessions, large))
    assert row(sessions, job_id).status == Status.FAILED


def test_a_job_that_no_living_worker_can_take_says_so_and_why(
    sessions: Sessions, make_job: MakeJob, settings: Settings
) -> None:
    job_id = make_job()

    def told() -> tuple[str, str]:
        with sessions.begin() as session:
            found = fairness.waiting_reason(session, session.get_one(Job, job_id), settings)
        assert found is not None
        return found["code"], found["message"]

    assert told() == ("no_worker", "No worker runs now.")
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
    assert told()[0] == "in_turn"
    need(sessions, needs={"device": "cuda", "disk": 600 << 30})
    assert told()[0] == "no_worker"
    assert "a device of the kind cuda and 644,245,094,400 bytes free on the disk" in told()[1]
    need(sessions, needs={}, spec_version=SPEC_VERSION + 1)
    assert "software as new as its request" in told()[1]
    need(sessions, spec_version=SPEC_VERSION)
    with sessions.begin() as session:
        session.execute(update(Worker).values(seen_at=text("now() - interval '1 h'")))
    assert told()[0] == "no_worker"
