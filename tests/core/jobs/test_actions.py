"""What a tenant may ask of a job, what comes of it, and that asking again changes nothing."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from core.capability import UNLIMITED
from core.errors import Code, ProblemError
from core.jobs import actions, attempts, jobs, recovery
from core.jobs.attempts import Requests
from core.specs import JobSpec
from core.states import Phase, Reason, Status
from core.tables import Job
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE, claimed, expire, moves, row
from tests.core.jobs.test_recovery import reap

Wish = Callable[[Session, str, str], Job]
STATE = {"step": 4, "files": []}


def ask(sessions: Sessions, wish: Wish, job_id: str) -> Job:
    """Ask twice: the second time nothing may change."""
    with sessions.begin() as session:
        wish(session, "ours", job_id)
    before, told = row(sessions, job_id).updated_at, moves(sessions, job_id)
    with sessions.begin() as session:
        job = wish(session, "ours", job_id)
    assert (job.updated_at, moves(sessions, job_id)) == (before, told)
    return job


def refused(sessions: Sessions, wish: Wish, job_id: str) -> bool:
    before = moves(sessions, job_id)
    with pytest.raises(ProblemError) as caught, sessions.begin() as session:
        wish(session, "ours", job_id)
    assert moves(sessions, job_id) == before
    return caught.value.code is Code.CONFLICT


def code(job: Job) -> str | None:
    return job.reason["code"] if job.reason else None


def test_a_queued_job_is_paused_at_once_and_no_worker_takes_it(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    job = ask(sessions, actions.pause, job_id)
    assert (job.status, code(job)) == (Status.PAUSED, Reason.ASKED)
    with sessions.begin() as session:
        assert attempts.claim(session, "w1", LEASE) is None
        assert jobs.position(session, job) is None
    job = ask(sessions, actions.resume, job_id)
    assert (job.status, job.reason) == (Status.QUEUED, None)
    assert claimed(sessions).job_id == job_id
    assert moves(sessions, job_id) == ["job.created", "job.paused", "job.resumed", "job.claimed"]


def test_a_pause_asked_of_a_job_that_waits_for_room_outlasts_the_want_of_room(
    sessions: Sessions, make_job: MakeJob
) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.hold_for_space(session, attempt, Reason.DISK_FULL, "m", needs=1)
    assert code(ask(sessions, actions.pause, job_id)) == Reason.ASKED
    with sessions.begin() as session:
        assert recovery.resume_waiting_for_space(session, Reason.DISK_FULL, UNLIMITED) == []
    assert ask(sessions, actions.resume, job_id).status == Status.QUEUED


def test_a_pause_asked_of_a_running_job_outlasts_the_want_of_room(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    ask(sessions, actions.pause, job_id)
    with sessions.begin() as session:
        attempts.hold_for_space(session, attempt, Reason.DISK_FULL, "m", needs=1)
    assert code(row(sessions, job_id)) == Reason.ASKED


def test_a_running_job_pauses_when_its_worker_gives_it_back(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    job = ask(sessions, actions.pause, job_id)
    assert (job.status, job.pausing) == (Status.RUNNING, True)
    with sessions.begin() as session:
        assert attempts.heartbeat(session, attempt, LEASE) == Requests(pausing=True, stop_step=None)
        attempts.release(session, attempt)
    job = row(sessions, job_id)
    assert (job.status, job.pausing, code(job), job.failures) == (Status.PAUSED, False, Reason.ASKED, 0)
    assert moves(sessions, job_id)[2:] == ["job.pausing", "job.released", "job.paused"]


def test_a_pause_survives_the_death_of_the_worker(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    claimed(sessions)
    ask(sessions, actions.pause, job_id)
    expire(sessions, job_id)
    assert reap(sessions) == [job_id]
    job = row(sessions, job_id)
    assert (job.status, job.failures) == (Status.PAUSED, 1)
    assert moves(sessions, job_id)[2:] == ["job.pausing", "job.lost", "job.paused"]


def test_a_pause_may_be_taken_back_before_it_has_come_about(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    ask(sessions, actions.pause, job_id)
    assert not ask(sessions, actions.resume, job_id).pausing
    with sessions.begin() as session:
        attempts.release(session, attempt)
    assert row(sessions, job_id).status == Status.QUEUED


def test_a_job_may_be_made_to_wait_for_its_start(sessions: Sessions, spec: JobSpec) -> None:
    waiting = spec.model_copy(update={"auto_start": False})
    with sessions.begin() as session:
        job, _ = jobs.create(session, "ours", waiting, None, "")
    assert (job.status, code(job)) == (Status.PAUSED, Reason.NOT_STARTED)
    assert ask(sessions, actions.pause, job.id).status == Status.PAUSED
    assert ask(sessions, actions.start, job.id).status == Status.QUEUED
    assert moves(sessions, job.id) == ["job.created", "job.paused", "job.started"]
    ask(sessions, actions.pause, job.id)
    assert refused(sessions, actions.start, job.id), "it was started before"


def test_a_stopped_job_trains_no_further_whoever_takes_it_up(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    assert attempt.stop_step is None
    with sessions.begin() as session:
        attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=7)
    ask(sessions, actions.pause, job_id)
    job = ask(sessions, actions.stop, job_id)
    assert (job.status, job.stopping, job.pausing) == (Status.RUNNING, True, False)
    with sessions.begin() as session:
        assert attempts.heartbeat(session, attempt, LEASE) == Requests(pausing=False, stop_step=7)
        attempts.release(session, attempt)
    assert claimed(sessions).stop_step == 7
    with sessions.begin() as session:
        job = session.get_one(Job, job_id)
        job.status, job.stop_step = Status.QUEUED, None
        job.step = 9
    assert claimed(sessions).stop_step == 9, "older software, which was asked, kept no step"


def test_of_a_waiting_job_what_it_has_saved_is_published(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.save_resume(session, attempt, STATE)
        attempts.release(session, attempt)
    ask(sessions, actions.pause, job_id)
    job = ask(sessions, actions.stop, job_id)
    assert (job.status, job.stopping) == (Status.QUEUED, True)
    assert moves(sessions, job_id)[-3:] == ["job.paused", "job.stopping", "job.resumed"]


def test_a_waiting_job_that_has_saved_nothing_is_cancelled_by_a_stop(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    assert ask(sessions, actions.stop, job_id).status == Status.CANCELLED


def test_of_a_job_that_has_ended_nothing_more_can_be_asked(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    for wish in (actions.cancel, actions.pause, actions.resume, actions.start, actions.stop):
        assert refused(sessions, wish, job_id)


def test_a_stop_may_be_repeated_after_what_it_led_to(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    ask(sessions, actions.stop, job_id)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    assert ask(sessions, actions.stop, job_id).status == Status.SUCCEEDED


def test_a_paused_job_can_be_cancelled(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    ask(sessions, actions.pause, job_id)
    job = ask(sessions, actions.cancel, job_id)
    assert (job.status, job.reason) == (Status.CANCELLED, None)
