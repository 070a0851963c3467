"""Rows of workers, their health, and the metrics of the service."""

import os
import threading

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
from tests import claims
from tests.core.conftest import GPU, MakeJob, Sessions
from tests.core.jobs.test_attempts import LEASE


def execute(sessions: Sessions, statement: str) -> None:
    with sessions.begin() as session:
        session.execute(text(statement))


def host(sessions: Sessions) -> str:
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w1", GPU)
        return session.get_one(Worker, "w1").host


def unhealthy(sessions: Sessions, host: str, settings: Settings) -> list[str]:
    with sessions.begin() as session:
        return workers.unhealthy(session, workers.list_on_host(session, host), settings)


def metrics(sessions: Sessions) -> dict[str, float]:
    with sessions.begin() as session:
        lines = prometheus.render(session, LEASE).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_a_worker_is_listed_with_its_versions_and_its_job(
    sessions: Sessions, settings: Settings, make_job: MakeJob
) -> None:
    host(sessions)
    job_id = make_job()
    with sessions.begin() as session:
        ((worker, alive, job),) = workers.list_with_jobs(session, 15)
        assert job is None
        assert alive
        assert {"torch", "seft", "python"} <= set(worker.versions)
        claims.claim(session, "w1", LEASE)
    with sessions.begin() as session:
        ((_, _, job),) = workers.list_with_jobs(session, 15)
    assert job is not None
    assert job.id == job_id


def test_an_idle_worker_without_notifications_while_jobs_wait_is_unhealthy(
    sessions: Sessions, settings: Settings, make_job: MakeJob
) -> None:
    here = host(sessions)
    silent = "UPDATE workers SET consumed_at = now() - interval '1 h'"
    execute(sessions, silent)
    assert unhealthy(sessions, here, settings) == [], "nothing waits"
    make_job()
    assert unhealthy(sessions, here, settings) == [], "the job waits only a moment"
    execute(sessions, "UPDATE jobs SET updated_at = now() - interval '1 h'")
    assert unhealthy(sessions, here, settings) == ["w1"]
    assert unhealthy(sessions, "elsewhere", settings) == []
    with sessions.begin() as session:
        workers.record_notification(session, "w1")
    assert unhealthy(sessions, here, settings) == []


def test_a_busy_worker_without_notifications_is_healthy(
    sessions: Sessions, settings: Settings, make_job: MakeJob
) -> None:
    here = host(sessions)
    for _ in range(2):
        make_job()
    with sessions.begin() as session:
        claims.claim(session, "w1", LEASE)
    execute(sessions, "UPDATE jobs SET updated_at = now() - interval '1 h'")
    execute(sessions, "UPDATE workers SET consumed_at = now() - interval '1 h'")
    assert unhealthy(sessions, here, settings) == []


def test_a_worker_without_sweeps_is_unhealthy_and_deleted_after_a_day(sessions: Sessions, settings: Settings) -> None:
    here = host(sessions)
    no_sweep = settings.model_copy(update={"sweep_seconds": 0.0})
    assert unhealthy(sessions, here, no_sweep) == ["w1"], "its last sweep is too long ago"
    execute(sessions, "UPDATE workers SET seen_at = now() - interval '1 h'")
    with sessions.begin() as session:
        assert [alive for _, alive, _ in workers.list_with_jobs(session, settings.sweep_seconds)] == [False]
    assert metrics(sessions)["seft_workers"] == 1
    execute(sessions, "UPDATE workers SET seen_at = now() - interval '25 h'")
    assert metrics(sessions)["seft_workers"] == 0, "also if no other worker deletes the row"
    with sessions.begin() as session:
        assert workers.list_with_jobs(session, 15) == []
        workers.record_heartbeat(session, "w2", GPU)
        assert [worker.name for worker, _, _ in workers.list_with_jobs(session, 15)] == ["w2"]


def test_a_stopped_worker_does_not_make_its_successor_unhealthy(sessions: Sessions) -> None:
    """Its number may belong to no process, to a later process, or to a thread of a later process."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    here = host(sessions)
    for number in (0, os.getpid(), thread.native_id):
        execute(sessions, f"UPDATE workers SET seen_at = now() - interval '1 y', pid = {number}")
        with sessions.begin() as session:
            assert workers.list_on_host(session, here) == [], number
    done.set()
    with sessions.begin() as session:
        workers.record_heartbeat(session, "w2", GPU)
    with sessions.begin() as session:
        assert workers.list_on_host(session, here) == ["w2"]


def test_metrics_count_rows_and_name_no_job(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    make_job()
    with sessions.begin() as session:
        claims.claim(session, "w1", LEASE)
    execute(sessions, "UPDATE jobs SET updated_at = now() - interval '60 s'")
    execute(sessions, "UPDATE jobs SET lease_expires_at = lease_expires_at - interval '9 s'")
    values = metrics(sessions)
    assert (values['seft_jobs{status="queued"}'], values['seft_jobs{status="running"}']) == (1, 1)
    assert values['seft_events_last_hour{type="job.created"}'] == 2
    assert 60 <= values["seft_oldest_waiting_seconds"] < 90
    assert 9 <= values["seft_heartbeat_age_seconds"] < 40
    assert job_id not in str(values)


def publish(session: Session, attempt: Attempt, bytes_: int) -> None:
    files = [{"name": "model", "size": bytes_, "sha256": "0"}]
    attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=files, scores={}, measured={})


def test_sums_outlive_the_jobs_and_count_only_committed_work(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    with sessions.begin() as session:
        attempt = claims.claim(session, "w1", LEASE)
        assert attempt is not None
    for phase in (Phase.LOADING, Phase.TRAINING, Phase.TRAINING, Phase.UPLOADING):
        with sessions.begin() as session:
            attempts.set_progress(session, attempt, phase=phase, progress=0.5, step=1)
        execute(
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
    execute(sessions, "DELETE FROM jobs")
    values = metrics(sessions)
    assert (
        values['seft_phase_seconds_count{phase="training"}'] == values['seft_phase_seconds_count{phase="loading"}'] == 1
    )
    assert (
        10
        <= values['seft_phase_seconds_sum{phase="loading"}']
        < 20
        <= values['seft_phase_seconds_sum{phase="training"}']
    )
    assert values['seft_phase_seconds_count{phase="uploading"}'] == 1
    assert values['seft_phase_seconds_count{phase="pruning"}'] == 0
    assert values['seft_job_seconds_count{status="succeeded"}'] == 1
    assert 40 <= values['seft_job_seconds_sum{status="succeeded"}'] < 60
    uploaded = {kind: values[f'seft_uploaded_bytes_total{{kind="{kind}"}}'] for kind in Kind}
    assert uploaded == {Kind.DATASET: 4096, Kind.STATE: 107, Kind.CHECKPOINT: 1000}
    assert job_id not in str(values)
