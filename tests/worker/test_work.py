"""What a worker does on a notification: it runs a job, or pauses after a system error."""

import sys
import time

import pytest
import redis
from sqlalchemy import update

from core import workers
from core.infra import queue
from core.jobs import actions
from core.states import Status
from core.tables import Job
from tests.claims import UNLIMITED
from tests.worker.conftest import Backend, supervisor
from worker.attempt import Supervisor
from worker.sweep import Sweep
from worker.work import Work


def test_a_worker_pauses_after_system_errors_and_leaves_the_queue_to_others(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.work.FIRST_PAUSE", 0.2)
    command = (sys.executable, "-m", "tests.worker.stand_in", "succeed")
    work = Work(backend.settings, queue.make_app(backend.settings), command)
    work.sessions = backend.sessions
    backend.settings.scratch.write_text("no folder")
    for pause in (0.2, 0.4):
        start = time.monotonic()
        work()
        assert time.monotonic() - start > pause
        assert backend.job(job_id).status == Status.QUEUED
    backend.settings.scratch.unlink()
    work()
    assert (backend.job(job_id).status, work.pause) == (Status.SUCCEEDED, 0.0)


def test_a_worker_pauses_after_an_error_that_nothing_handles(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Supervisor) -> bool:
        raise RuntimeError

    monkeypatch.setattr("worker.work.FIRST_PAUSE", 0.2)
    monkeypatch.setattr(Supervisor, "run", fail)
    work = Work(backend.settings, queue.make_app(backend.settings), ())
    work.sessions = backend.sessions
    with pytest.raises(RuntimeError):
        work()
    assert (backend.job(job_id).status, work.pause) == (Status.RUNNING, 0.2)


def test_a_worker_pauses_if_the_memory_of_its_device_is_not_freed(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.work.FIRST_PAUSE", 0.2)
    monkeypatch.setattr("worker.device.used_memory", lambda settings: 100)
    monkeypatch.setattr("worker.device.unfreed_memory", lambda settings, before: before)
    work = Work(
        backend.settings, queue.make_app(backend.settings), (sys.executable, "-m", "tests.worker.stand_in", "succeed")
    )
    work.sessions = backend.sessions
    work()
    assert (backend.job(job_id).status, work.pause) == (Status.SUCCEEDED, 0.2)


def test_a_worker_without_enough_disk_space_leaves_the_job_and_every_worker_is_notified(
    backend: Backend, job_id: str
) -> None:
    supervisor(backend, "fill_the_disk").run()
    backend.request(actions.resume, job_id)
    with backend.sessions.begin() as session:
        session.execute(update(Job).values(needs={"disk": UNLIMITED.disk}))
        for name in ("worker-1", "worker-2", "worker-3"):
            workers.record_heartbeat(session, name, UNLIMITED)
    app = queue.make_app(backend.settings)
    work = Work(backend.settings, app, (sys.executable, "-m", "tests.worker.stand_in", "succeed"))
    work.sessions = backend.sessions
    work()
    assert (backend.job(job_id).status, backend.job(job_id).attempt) == (Status.QUEUED, 1)
    Sweep("worker-1", backend.settings, app, backend.sessions, backend.storage).notify_waiting()
    with redis.Redis.from_url(str(backend.settings.broker_url)) as client:
        assert client.llen("seft") == 3
    with backend.sessions.begin() as session:
        session.execute(update(Job).values(needs={"disk": 1}))
    work()
    assert backend.job(job_id).status == Status.SUCCEEDED
