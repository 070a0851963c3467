"""What workers tell of themselves, and when one of them is not well."""

import os

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from core import prometheus, workers
from core.errors import LeaseLostError
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.states import Phase
from core.tables import Worker
from core.totals import Kind
from tests.core.conftest import GPU, MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE


def age(sessions: Sessions, statement: str) -> None:
    with sessions.begin() as session:
        session.execute(text(statement))


def host(sessions: Sessions) -> str:
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
        return session.get_one(Worker, "w1").host


def unwell(sessions: Sessions, host: str, settings: Settings) -> list[str]:
    with sessions.begin() as session:
        return workers.unhealthy(session, workers.of_host(session, host), settings)


def figures_now(sessions: Sessions) -> dict[str, float]:
    with sessions.begin() as session:
        lines = prometheus.render(session, LEASE).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_a_worker_shows_what_it_is_and_what_it_does(sessions: Sessions, settings: Settings, make_job: MakeJob) -> None:
    host(sessions)
    job_id = make_job()
    with sessions.begin() as session:
        ((worker, job),) = workers.list_with_jobs(session)
        assert job is None
        assert {"torch", "seft", "python"} <= set(worker.versions)
        attempts.claim(session, "w1", LEASE)
    with sessions.begin() as session:
        ((_, job),) = workers.list_with_jobs(session)
    assert job is not None
    assert job.id == job_id


def test_a_worker_that_answers_and_takes_no_hint_while_jobs_wait_is_not_well(
    sessions: Sessions, settings: Settings, make_job: MakeJob
) -> None:
    here = host(sessions)
    deaf = "UPDATE workers SET consumed_at = now() - interval '1 h'"
    age(sessions, deaf)
    assert unwell(sessions, here, settings) == [], "nothing waits"
    make_job()
    assert unwell(sessions, here, settings) == [], "it waits for a moment only"
    age(sessions, "UPDATE jobs SET updated_at = now() - interval '1 h'")
    assert unwell(sessions, here, settings) == ["w1"]
    assert unwell(sessions, "elsewhere", settings) == []
    with sessions.begin() as session:
        workers.record_notification(session, "w1")
    assert unwell(sessions, here, settings) == []


def test_a_worker_that_runs_a_job_takes_no_hints_and_is_well(
    sessions: Sessions, settings: Settings, make_job: MakeJob
) -> None:
    here = host(sessions)
    for _ in range(2):
        make_job()
    with sessions.begin() as session:
        attempts.claim(session, "w1", LEASE)
    age(sessions, "UPDATE jobs SET updated_at = now() - interval '1 h'")
    age(sessions, "UPDATE workers SET consumed_at = now() - interval '1 h'")
    assert unwell(sessions, here, settings) == []


def test_a_worker_whose_sweep_stands_still_is_not_well_and_forgotten_after_a_day(
    sessions: Sessions, settings: Settings
) -> None:
    here = host(sessions)
    age(sessions, "UPDATE workers SET seen_at = now() - interval '1 h'")
    assert unwell(sessions, here, settings) == ["w1"]
    age(sessions, "UPDATE workers SET seen_at = now() - interval '25 h'")
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w2", GPU)
        assert [worker.name for worker, _ in workers.list_with_jobs(session)] == ["w2"]


def test_a_worker_that_is_gone_is_not_held_against_the_one_that_came_after_it(
    sessions: Sessions, settings: Settings
) -> None:
    here = host(sessions)
    age(sessions, "UPDATE workers SET seen_at = now() - interval '1 h', pid = 0")
    assert unwell(sessions, here, settings) == [], "no process has this number"
    age(sessions, f"UPDATE workers SET pid = {os.getpid()}")
    assert unwell(sessions, here, settings) == ["w1"]
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w2", GPU)
    assert unwell(sessions, here, settings) == [], "it has the process id of the one before"


def test_figures_count_the_rows_and_name_no_job(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    make_job()
    with sessions.begin() as session:
        attempts.claim(session, "w1", LEASE)
    age(sessions, "UPDATE jobs SET updated_at = now() - interval '60 s'")
    age(sessions, "UPDATE jobs SET lease_expires_at = lease_expires_at - interval '9 s'")
    told = figures_now(sessions)
    assert (told['seft_jobs{status="queued"}'], told['seft_jobs{status="running"}']) == (1, 1)
    assert told['seft_events_last_hour{type="job.created"}'] == 2
    assert 60 <= told["seft_oldest_waiting_seconds"] < 90
    assert 9 <= told["seft_heartbeat_age_seconds"] < 40
    assert job_id not in str(told)


def publish(session: Session, attempt: Attempt, bytes_: int) -> None:
    files = [{"name": "model", "size": bytes_, "sha256": "0"}]
    attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=files, scores={}, measured={})


def test_sums_outlive_the_jobs_and_count_what_was_kept_alone(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    with sessions.begin() as session:
        attempt = attempts.claim(session, "w1", LEASE)
        assert attempt is not None
    for phase in (Phase.LOADING, Phase.TRAINING, Phase.TRAINING, Phase.UPLOADING):
        with sessions.begin() as session:
            attempts.set_progress(session, attempt, phase=phase, progress=0.5, step=1)
        age(
            sessions, "UPDATE jobs SET phase_at = phase_at - interval '10 s', started_at = started_at - interval '10 s'"
        )
    first = {"name": "weights", "key": "a", "size": 100}
    for files in ([first], [first, {"name": "step", "key": "b", "size": 7}]):
        with sessions.begin() as session:
            attempts.save_resume(session, attempt, {"step": 1, "files": files})
    with sessions.begin() as session:
        publish(session, attempt, 1000)
    with pytest.raises(LeaseLostError), sessions.begin() as session:
        publish(session, attempt, 1000)
    age(sessions, "DELETE FROM jobs")
    told = figures_now(sessions)
    assert told['seft_phase_seconds_count{phase="training"}'] == told['seft_phase_seconds_count{phase="loading"}'] == 1
    assert (
        10 <= told['seft_phase_seconds_sum{phase="loading"}'] < 20 <= told['seft_phase_seconds_sum{phase="training"}']
    )
    assert told['seft_phase_seconds_count{phase="uploading"}'] == 1
    assert told['seft_phase_seconds_count{phase="pruning"}'] == 0
    assert told['seft_job_seconds_count{status="succeeded"}'] == 1
    assert 40 <= told['seft_job_seconds_sum{status="succeeded"}'] < 60
    uploaded = {kind: told[f'seft_uploaded_bytes_total{{kind="{kind}"}}'] for kind in Kind}
    assert uploaded == {Kind.DATASET: 30, Kind.STATE: 107, Kind.CHECKPOINT: 1000}
    assert job_id not in str(told)
