"""Actions of a tenant on a job: their effects, and that they are idempotent."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy.orm import Session

from core.errors import Code, ProblemError
from core.jobs import actions, attempts, jobs, recovery
from core.jobs.attempts import PendingActions
from core.specs import JobSpec
from core.states import Phase, Reason, Status
from core.tables import Job
from tests import claims
from tests.claims import UNLIMITED
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE, claimed, event_types, expire, row
from tests.core.jobs.test_recovery import requeue_lost

Action = Callable[[Session, str, str], Job]
STATE = {"step": 4, "files": []}


def act(sessions: Sessions, action: Action, job_id: str) -> Job:
    """Do it twice: the second time must change nothing."""
    with sessions.begin() as session:
        action(session, "ours", job_id)
    updated_at, events = row(sessions, job_id).updated_at, event_types(sessions, job_id)
    with sessions.begin() as session:
        job = action(session, "ours", job_id)
    assert (job.updated_at, event_types(sessions, job_id)) == (updated_at, events)
    return job


def is_conflict(sessions: Sessions, action: Action, job_id: str) -> bool:
    before = event_types(sessions, job_id)
    with pytest.raises(ProblemError) as caught, sessions.begin() as session:
        action(session, "ours", job_id)
    assert event_types(sessions, job_id) == before
    return caught.value.code is Code.CONFLICT


def reason_code(job: Job) -> str | None:
    return job.reason["code"] if job.reason else None


def test_a_queued_job_is_paused_at_once_and_no_worker_takes_it(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    job = act(sessions, actions.pause, job_id)
    assert (job.status, reason_code(job)) == (Status.PAUSED, Reason.ASKED)
    with sessions.begin() as session:
        assert claims.claim(session, "w1", LEASE) is None
        assert jobs.position(session, job) is None
    job = act(sessions, actions.resume, job_id)
    assert (job.status, job.reason) == (Status.QUEUED, None)
    assert claimed(sessions).job_id == job_id
    assert event_types(sessions, job_id) == ["job.created", "job.paused", "job.resumed", "job.claimed"]


def test_a_pause_of_a_job_that_waits_for_space_stays_after_space_is_free(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.pause_for(session, attempt, Reason.DISK_FULL, "m", needs=1)
    assert reason_code(act(sessions, actions.pause, job_id)) == Reason.ASKED
    with sessions.begin() as session:
        assert recovery.resume_paused_for(session, Reason.DISK_FULL, UNLIMITED) == []
    assert act(sessions, actions.resume, job_id).status == Status.QUEUED


def test_a_resume_leads_to_a_try_even_if_no_worker_has_the_space(sessions: Sessions, make_job: MakeJob) -> None:
    job_id, small = make_job(), replace(UNLIMITED, disk=1 << 30)
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.save_resume(session, attempt, STATE)
        attempts.pause_for(session, attempt, Reason.DISK_FULL, "m", needs=1 << 40)
    assert act(sessions, actions.resume, job_id).needs == {"device": UNLIMITED.device}
    with sessions.begin() as session:
        again = claims.claim(session, "w1", LEASE, capability=small)
    assert again is not None
    assert (again.job_id, again.resume) == (job_id, STATE)


def test_a_pause_of_a_running_job_takes_precedence_over_a_lack_of_space(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    act(sessions, actions.pause, job_id)
    with sessions.begin() as session:
        attempts.pause_for(session, attempt, Reason.DISK_FULL, "m", needs=1)
    assert reason_code(row(sessions, job_id)) == Reason.ASKED


def test_a_running_job_is_paused_when_its_worker_releases_it(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    job = act(sessions, actions.pause, job_id)
    assert (job.status, job.pausing) == (Status.RUNNING, True)
    with sessions.begin() as session:
        assert attempts.heartbeat(session, attempt, LEASE, 0.0) == PendingActions(pausing=True, stop_step=None)
        attempts.release(session, attempt)
    job = row(sessions, job_id)
    assert (job.status, job.pausing, reason_code(job), job.failures) == (Status.PAUSED, False, Reason.ASKED, 0)
    assert event_types(sessions, job_id)[2:] == ["job.pausing", "job.released", "job.paused"]


def test_a_pause_survives_the_death_of_the_worker(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    claimed(sessions)
    act(sessions, actions.pause, job_id)
    expire(sessions, job_id)
    assert requeue_lost(sessions) == [job_id]
    job = row(sessions, job_id)
    assert (job.status, job.failures) == (Status.PAUSED, 1)
    assert event_types(sessions, job_id)[2:] == ["job.pausing", "job.lost", "job.paused"]


def test_a_pending_pause_can_be_cancelled(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    act(sessions, actions.pause, job_id)
    assert not act(sessions, actions.resume, job_id).pausing
    with sessions.begin() as session:
        attempts.release(session, attempt)
    assert row(sessions, job_id).status == Status.QUEUED


def test_a_job_can_be_created_to_wait_for_its_start(sessions: Sessions, spec: JobSpec) -> None:
    waiting = spec.model_copy(update={"auto_start": False})
    with sessions.begin() as session:
        job = jobs.create(session, "ours", waiting, None, "")
    assert (job.status, reason_code(job)) == (Status.PAUSED, Reason.NOT_STARTED)
    assert act(sessions, actions.pause, job.id).status == Status.PAUSED
    assert act(sessions, actions.start, job.id).status == Status.QUEUED
    assert event_types(sessions, job.id) == ["job.created", "job.paused", "job.started"]
    act(sessions, actions.pause, job.id)
    assert is_conflict(sessions, actions.start, job.id), "it was started before"


def test_a_stopped_job_stays_stopped_in_later_attempts(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    assert attempt.stop_step is None
    with sessions.begin() as session:
        attempts.set_progress(session, attempt, phase=Phase.TRAINING, progress=0.5, step=7)
    act(sessions, actions.pause, job_id)
    job = act(sessions, actions.stop, job_id)
    assert (job.status, job.stopping, job.pausing) == (Status.RUNNING, True, False)
    assert event_types(sessions, job_id)[-2:] == ["job.pausing", "job.stopping"]
    with sessions.begin() as session:
        assert attempts.heartbeat(session, attempt, LEASE, 0.0) == PendingActions(pausing=False, stop_step=7)
        attempts.release(session, attempt)
    assert claimed(sessions).stop_step == 7
    with sessions.begin() as session:
        job = session.get_one(Job, job_id)
        job.status, job.stop_step = Status.QUEUED, None
        job.step = 9
    assert claimed(sessions).stop_step == 9, "older software stored no step"


def test_a_stopped_waiting_job_publishes_its_saved_state(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.save_resume(session, attempt, STATE)
        attempts.release(session, attempt)
    act(sessions, actions.pause, job_id)
    job = act(sessions, actions.stop, job_id)
    assert (job.status, job.stopping) == (Status.QUEUED, True)
    assert event_types(sessions, job_id)[-3:] == ["job.paused", "job.stopping", "job.resumed"]


@pytest.mark.parametrize("released", [False, True])
def test_a_stop_ends_a_pause_also_if_the_job_was_stopped_before(
    sessions: Sessions, make_job: MakeJob, released: bool
) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    act(sessions, actions.stop, job_id)
    act(sessions, actions.pause, job_id)
    if released:
        with sessions.begin() as session:
            attempts.release(session, attempt)
    job = act(sessions, actions.stop, job_id)
    assert (job.status, job.pausing) == (Status.QUEUED if released else Status.RUNNING, False)


def test_a_stop_cancels_a_waiting_job_without_a_saved_state(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    assert act(sessions, actions.stop, job_id).status == Status.CANCELLED


def test_a_job_that_has_ended_rejects_all_actions(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    for action in (actions.cancel, actions.pause, actions.resume, actions.start, actions.stop):
        assert is_conflict(sessions, action, job_id)


def test_a_stop_can_be_repeated_after_the_job_has_ended(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    act(sessions, actions.stop, job_id)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    assert act(sessions, actions.stop, job_id).status == Status.SUCCEEDED


def test_a_paused_job_can_be_cancelled(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    act(sessions, actions.pause, job_id)
    job = act(sessions, actions.cancel, job_id)
    assert (job.status, job.reason) == (Status.CANCELLED, None)
