"""Jobs that the sweep requeues or marks for notification, and jobs that it leaves alone."""

from sqlalchemy import text

from core.jobs import attempts, recovery
from core.states import Status
from core.tables import Job
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import claimed, event_types, expire, row


def requeue_lost(sessions: Sessions, max_failures: int = 3) -> list[str]:
    with sessions.begin() as session:
        return recovery.requeue_lost(session, max_failures)


def test_a_job_whose_lease_expired_is_requeued_and_counted_as_a_failure(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    claimed(sessions)
    assert requeue_lost(sessions) == []
    expire(sessions, job_id)
    assert requeue_lost(sessions) == [job_id]
    job = row(sessions, job_id)
    assert (job.status, job.failures, job.worker, job.notified_at) == (Status.QUEUED, 1, None, None)
    assert event_types(sessions, job_id) == ["job.created", "job.claimed", "job.lost"]


def test_a_job_that_kills_its_workers_fails_permanently(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    for _ in range(3):
        claimed(sessions)
        expire(sessions, job_id)
        assert requeue_lost(sessions) == [job_id]
    job = row(sessions, job_id)
    assert (job.status, job.failures) == (Status.FAILED, 3)
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert requeue_lost(sessions) == []


def test_a_job_that_kills_its_workers_reports_the_last_error(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.fail(
            session, attempt, fault=attempts.Fault.SYSTEM, code="c", message="the tail", retry=True, max_failures=2
        )
    claimed(sessions)
    expire(sessions, job_id)
    assert requeue_lost(sessions, 2) == [job_id]
    error = row(sessions, job_id).error
    assert error is not None
    assert "the tail" in error["message"]
    assert error["message"].endswith(f" Create the job again with POST /jobs/{job_id}/clone, or ask the operator.")


def test_a_late_heartbeat_keeps_a_job_that_is_not_requeued_yet(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    expire(sessions, job_id)
    with sessions.begin() as session:
        attempts.heartbeat(session, attempt, 60, 0.0)
        assert requeue_lost(sessions) == [], "the heartbeat is not committed yet"
    assert requeue_lost(sessions) == []


def test_one_sweep_runs_at_a_time(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    claimed(sessions)
    expire(sessions, job_id)
    with sessions.begin() as one:
        assert recovery.requeue_lost(one, 3) == [job_id]
        assert requeue_lost(sessions) == []


def test_a_queued_job_with_an_old_notification_is_marked_again(sessions: Sessions, make_job: MakeJob) -> None:
    low, high = make_job(0), make_job(1)
    with sessions.begin() as session:
        assert recovery.mark_for_notification(session, 30, 10) == []
        session.execute(text("UPDATE jobs SET hinted_at = now() - interval '31 s'"))
    with sessions.begin() as session:
        marked = recovery.mark_for_notification(session, 30, 1)
    with sessions.begin() as session:
        assert {*marked, *recovery.mark_for_notification(session, 30, 10)} == {low, high}
        assert recovery.mark_for_notification(session, 30, 10) == []


def test_a_released_job_is_marked_at_once_and_a_running_one_never(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        session.execute(text("UPDATE jobs SET hinted_at = now() - interval '1 h'"))
    with sessions.begin() as session:
        assert recovery.mark_for_notification(session, 30, 10) == []
        attempts.release(session, attempt)
    with sessions.begin() as session:
        before = session.get_one(Job, job_id).updated_at
        assert recovery.mark_for_notification(session, 30, 10) == [job_id]
    assert row(sessions, job_id).updated_at == before
