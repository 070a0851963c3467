"""Writes of a worker to a job, and that only the running attempt can write."""

import inspect
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from core.errors import LeaseLostError
from core.jobs import actions, attempts, recovery, reports
from core.jobs.attempts import Attempt, Fault
from core.settings import Settings
from core.specs import SPEC_VERSION
from core.states import TOPOLOGY_EVOLVED, Phase, Reason, Status
from core.tables import Base, Job, JobEvent
from local.servers import Servers
from tests import claims
from tests.conftest import as_owner
from tests.core.conftest import MakeJob, Sessions, plans

LEASE = 60.0


def claimed(sessions: Sessions, worker: str = "w1") -> Attempt:
    with sessions.begin() as session:
        attempt = claims.claim(session, worker, LEASE)
    assert attempt is not None
    return attempt


def row(sessions: Sessions, job_id: str) -> Job:
    with sessions.begin() as session:
        return session.get_one(Job, job_id)


def expire(sessions: Sessions, job_id: str) -> None:
    late = "UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE id = :id AND status = 'running'"
    with sessions.begin() as session:
        session.execute(text(late), {"id": job_id})


def event_types(sessions: Sessions, job_id: str) -> list[str]:
    with sessions.begin() as session:
        return [event.type for event in reports.events(session, job_id, after=0, limit=100)[0]]


def test_jobs_are_claimed_by_priority_and_then_by_age(sessions: Sessions, make_job: MakeJob) -> None:
    old, _, urgent = make_job(0), make_job(-1), make_job(5)
    assert claimed(sessions).job_id == urgent
    assert claimed(sessions).job_id == old


def test_no_job_is_claimed_twice(sessions: Sessions, make_job: MakeJob) -> None:
    job_ids = {make_job() for _ in range(40)}
    start = threading.Barrier(8)

    def work(number: int) -> list[str]:
        start.wait()
        own: list[str] = []
        while True:
            with sessions.begin() as session:
                attempt = claims.claim(session, f"w{number}", LEASE)
            if attempt is None:
                return own
            own.append(attempt.job_id)

    with ThreadPoolExecutor(8) as pool:
        claimed_ids = list(itertools.chain.from_iterable(pool.map(work, range(8))))
    assert len(claimed_ids) == len(job_ids)
    assert set(claimed_ids) == job_ids


def test_a_claim_skips_a_job_that_is_being_changed(sessions: Sessions, make_job: MakeJob) -> None:
    first, second = make_job(), make_job()
    with sessions.begin() as other:
        other.execute(select(Job).where(Job.id == first).with_for_update())
        assert claimed(sessions).job_id == second
        with sessions.begin() as session:
            assert claims.claim(session, "w2", LEASE) is None
    assert claimed(sessions).job_id == first


def test_claims_run_one_after_the_other(sessions: Sessions, make_job: MakeJob) -> None:
    first, second = make_job(), make_job()
    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as one:
            ours = claims.claim(one, "w1", LEASE)
            later = pool.submit(claimed, sessions, "w2")
            time.sleep(0.3)
            assert not later.done()
        assert ours is not None
        assert (ours.job_id, later.result().job_id) == (first, second)


def test_a_job_whose_request_is_invalid_now_fails_and_the_next_one_is_claimed(
    sessions: Sessions, make_job: MakeJob
) -> None:
    old, next_one = make_job(), make_job()
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET spec = spec || '{\"sparsity\": 7}' WHERE id = :id"), {"id": old})
    assert claimed(sessions).job_id == next_one
    job = row(sessions, old)
    assert (job.status, job.attempt) == (Status.FAILED, 1)
    assert job.error is not None
    assert job.error["code"] == "request_outdated"
    assert "sparsity" in job.error["message"]
    assert event_types(sessions, old) == ["job.created", "job.claimed", "job.failed"]


def test_a_job_accepted_by_newer_software_is_left_to_a_newer_worker(sessions: Sessions, make_job: MakeJob) -> None:
    newer, next_one = make_job(), make_job()
    later = "UPDATE jobs SET spec = spec || '{\"invented\": 3}', spec_version = :later WHERE id = :id"
    with sessions.begin() as session:
        session.execute(text(later), {"id": newer, "later": SPEC_VERSION + 1})
    assert claimed(sessions).job_id == next_one
    with sessions.begin() as session:
        assert claims.claim(session, "w1", LEASE) is None
    job = row(sessions, newer)
    assert (job.status, job.attempt) == (Status.QUEUED, 0)


def all_rows(sessions: Sessions) -> list[object]:
    """Return all rows of all tables."""
    with sessions.begin() as session:
        return [
            session.execute(select(table).order_by(*table.primary_key)).all() for table in Base.metadata.sorted_tables
        ]


WRITES: dict[str, Callable[[Session, Attempt], object]] = {
    "heartbeat": lambda s, a: attempts.heartbeat(s, a, LEASE, 0.0),
    "set_progress": lambda s, a: attempts.set_progress(s, a, phase=Phase.TRAINING, progress=0.5, step=3),
    "add_metrics": lambda s, a: attempts.add_metrics(s, a, [(1, {"loss": 1.0})]),
    "add_event": lambda s, a: attempts.add_event(s, a, "evolved", {}),
    "record_evolution": lambda s, a: attempts.record_evolution(s, a, {"step": 3}),
    "restart_training": lambda s, a: attempts.restart_training(s, a, "state.missing", "m"),
    "add_scores": lambda s, a: attempts.add_scores(s, a, {"dense": 1.0}),
    "save_resume": lambda s, a: attempts.save_resume(s, a, {"step": 1, "files": []}),
    "publish": lambda s, a: attempts.publish(s, a, step=1, prefix="p", sha256="0", files=[], scores={}, measured={}),
    "fail": lambda s, a: attempts.fail(s, a, fault=Fault.SYSTEM, code="c", message="m", retry=True, max_failures=3),
    "fail_out_of_memory": lambda s, a: attempts.fail_out_of_memory(s, a, message="m", micro_batch=1, larger=True),
    "pause_for": lambda s, a: attempts.pause_for(s, a, Reason.DISK_FULL, "m", needs=1),
    "release": attempts.release,
}


def assert_refused(sessions: Sessions, write: Callable[[Session, Attempt], object], attempt: Attempt) -> None:
    """Assert that the write of an attempt that has lost its job raises an error, and has changed no row before that."""
    before = all_rows(sessions)
    with sessions.begin() as session, pytest.raises(LeaseLostError):
        write(session, attempt)
    assert all_rows(sessions) == before


def test_all_writes_of_an_attempt_are_tested() -> None:
    own = {name: each for name, each in vars(attempts).items() if getattr(each, "__module__", "") == attempts.__name__}
    public = {name: each for name, each in own.items() if inspect.isfunction(each) and not name.startswith("_")}
    takes_attempt = {name for name, each in public.items() if "attempt" in inspect.signature(each).parameters}
    assert takes_attempt == WRITES.keys()


def test_a_worker_that_lost_its_job_cannot_write(sessions: Sessions, make_job: MakeJob) -> None:
    for write in WRITES.values():
        cancelled, deleted, taken_over = make_job(), make_job(), make_job()
        stale = [claimed(sessions, "dead") for _ in range(3)]
        with sessions.begin() as session:
            actions.cancel(session, "ours", cancelled)
            actions.cancel(session, "ours", deleted)
            actions.delete(session, "ours", deleted)
        expire(sessions, taken_over)
        with sessions.begin() as session:
            assert recovery.requeue_lost(session, 3) == [taken_over]
        assert claimed(sessions, "living").job_id == taken_over
        for attempt in stale:
            assert_refused(sessions, write, attempt)


def test_two_workers_with_the_same_number_of_an_attempt_do_not_both_write(
    sessions: Sessions, make_job: MakeJob
) -> None:
    """This happens after a restore of the database, if a worker still runs an attempt of the time after the backup."""
    for write in WRITES.values():
        make_job()
        stale = claimed(sessions, "before")
        with sessions.begin() as session:
            session.execute(text("UPDATE jobs SET worker = 'after' WHERE status = 'running'"))
        assert_refused(sessions, write, stale)


def test_the_lease_counts_from_the_end_of_a_claim_that_had_to_wait(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    with sessions.begin() as session:
        began = session.scalars(select(func.now())).one()
        waited = session.scalars(select(func.clock_timestamp())).one()
        claims.claim(session, "w1", LEASE)
        expires = session.scalars(select(Job.lease_expires_at)).one()
        ended = session.scalars(select(func.clock_timestamp())).one()
    assert expires is not None
    assert began < waited < expires - timedelta(seconds=LEASE) < ended


def test_a_resumed_attempt_starts_from_the_saved_state(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    first = claimed(sessions)
    assert first.number == 1
    assert first.resume is None
    with sessions.begin() as session:
        attempts.add_scores(session, first, {"dense": 20.0})
        attempts.add_scores(session, first, {"pruned": 50.0})
        assert attempts.save_resume(session, first, {"step": 10, "files": []}) is None
        assert attempts.save_resume(session, first, {"step": 20, "files": []}) == {"step": 10, "files": []}
        attempts.release(session, first)
    second = claimed(sessions)
    assert (second.number, second.resume) == (2, {"step": 20, "files": []})
    assert second.scores == {"dense": 20.0, "pruned": 50.0}


def test_a_job_keeps_the_start_of_its_first_attempt(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    started_at = row(sessions, job_id).started_at
    with sessions.begin() as session:
        attempts.release(session, attempt)
    claimed(sessions)
    assert row(sessions, job_id).started_at == started_at


def test_metrics_of_a_repeated_step_are_replaced(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.add_metrics(session, attempt, [(1, {"loss": 3.0}), (2, {"loss": 2.5})])
        attempts.add_metrics(session, attempt, [(2, {"loss": 2.0}), (3, {"loss": 1.0})])
        attempts.add_metrics(session, attempt, [])
        rows, more = reports.metrics(session, job_id, after_step=-1, limit=10)
    assert [(m.step, m.values["loss"]) for m in rows] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert not more


@pytest.mark.usefixtures("new_database")
def test_a_topology_event_is_written_once_and_reads_only_the_newest_one(
    sessions: Sessions, make_job: MakeJob, servers: Servers, settings: Settings
) -> None:
    make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        for step in range(1, 301):
            attempts.record_evolution(session, attempt, {"step": step})
    with psycopg.connect(str(as_owner(servers, settings).database_url), autocommit=True) as connection:
        connection.execute("ANALYZE job_events")
    with sessions.begin() as session:
        with plans(session, "ANALYZE") as found:
            attempts.record_evolution(session, attempt, {"step": 301})
        for step in (300, 301, 302):
            attempts.record_evolution(session, attempt, {"step": step})
        query = select(JobEvent.data["step"].as_integer()).where(JobEvent.type == TOPOLOGY_EVOLVED)
        assert list(session.scalars(query.order_by(JobEvent.id))) == list(range(1, 303))
    (plan,) = found
    assert "Rows Removed by Filter" not in plan
    assert "Sort" not in plan


def test_publishing_ends_the_job_with_its_checkpoint(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    files = [{"name": "manifest.json", "size": 2, "sha256": "ab"}]
    with sessions.begin() as session:
        attempts.publish(
            session,
            attempt,
            step=7,
            prefix="p/",
            sha256="ab",
            files=files,
            scores={"dense": 1.5},
            measured={"zeros": 3},
        )
    job = row(sessions, job_id)
    assert (job.status, job.progress, job.step, job.scores) == (Status.SUCCEEDED, 1.0, 7, {"dense": 1.5})
    assert job.finished_at is not None
    assert job.lease_expires_at is None
    with sessions.begin() as session:
        (checkpoint,) = reports.checkpoints(session, job_id)
    assert (checkpoint.sha256, checkpoint.files) == ("ab", files)
    assert event_types(sessions, job_id) == ["job.created", "job.claimed", "job.succeeded"]


def test_a_newer_saved_state_resets_the_failures(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    for step, failures in ((0, 1), (10, 1), (10, 2), (20, 1), (20, 2)):
        attempt = claimed(sessions)
        with sessions.begin() as session:
            attempts.save_resume(session, attempt, {"step": step, "files": []})
            attempts.fail(session, attempt, fault=Fault.SYSTEM, code="c", message="m", retry=True, max_failures=3)
        assert row(sessions, job_id).failures == failures
    attempt = claimed(sessions)
    with sessions.begin() as session:
        assert not attempts.fail(
            session, attempt, fault=Fault.SYSTEM, code="c", message="m", retry=True, max_failures=3
        )


def test_a_failing_job_is_retried_up_to_the_maximum_of_failures(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    for again in (True, True, False):
        with sessions.begin() as session:
            attempt = claims.claim(session, "w1", LEASE)
            assert attempt is not None
            retried = attempts.fail(
                session, attempt, fault=Fault.SYSTEM, code="oops", message="broken", retry=True, max_failures=3
            )
        assert retried is again
    job = row(sessions, job_id)
    assert (job.status, job.failures) == (Status.FAILED, 3)
    message = f"broken. Create the job again with POST /jobs/{job_id}/clone, or ask the operator."
    assert job.error == {"fault": "system_error", "code": "oops", "message": message}


def test_a_user_error_fails_the_job_at_once(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        assert not attempts.fail(
            session, attempt, fault=Fault.USER, code="oom", message="m", retry=False, max_failures=3
        )
    assert row(sessions, job_id).status == Status.FAILED


def test_a_heartbeat_renews_the_lease_without_a_visible_change(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    before = row(sessions, job_id)
    with sessions.begin() as session:
        attempts.heartbeat(session, attempt, 2 * LEASE, 0.0)
    after = row(sessions, job_id)
    assert before.lease_expires_at is not None
    assert after.lease_expires_at is not None
    assert after.lease_expires_at > before.lease_expires_at
    assert after.updated_at == before.updated_at


def test_events_of_a_job_commit_in_the_order_of_their_ids(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)

    def write_event(number: int) -> None:
        with sessions.begin() as session:
            attempts.add_event(session, attempt, "evolved", {"number": number})

    event_ids: list[int] = []
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(write_event, number) for number in range(60)]
        while len(event_ids) < 62:
            with sessions.begin() as session:
                query = select(JobEvent.id).where(
                    JobEvent.job_id == job_id, JobEvent.id > (event_ids[-1] if event_ids else 0)
                )
                event_ids.extend(session.scalars(query.order_by(JobEvent.id)))
        for future in futures:
            future.result()
    with sessions.begin() as session:
        assert event_ids == [event.id for event in reports.events(session, job_id, after=0, limit=100)[0]]
