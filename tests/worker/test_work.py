"""What a worker does with hints: a job it can do is done; where it cannot work, it rests."""

import sys
import time

import pytest
import redis
from sqlalchemy import update

from core import workers
from core.capability import UNLIMITED
from core.infra import queue
from core.jobs import actions
from core.states import Status
from core.tables import Job
from tests.worker.conftest import House, supervisor
from worker.sweep import Sweep
from worker.work import Work


def test_a_worker_that_cannot_work_rests_and_leaves_the_queue_to_others(
    house: House, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.work.FIRST_PAUSE", 0.2)
    command = (sys.executable, "-m", "tests.worker.stand_in", "succeed")
    work = Work(house.settings, queue.make_app(house.settings), command)
    work.sessions = house.sessions
    house.settings.scratch.write_text("no folder")
    for pause in (0.2, 0.4):
        began = time.monotonic()
        work()
        assert time.monotonic() - began > pause
        assert house.job(job_id).status == Status.QUEUED
    house.settings.scratch.unlink()
    work()
    assert (house.job(job_id).status, work.pause) == (Status.SUCCEEDED, 0.0)


def test_a_worker_rests_where_its_device_is_not_free_again(
    house: House, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.work.FIRST_PAUSE", 0.2)
    monkeypatch.setattr("worker.device.used", lambda settings: 100)
    monkeypatch.setattr("worker.device.held", lambda settings, before: before)
    work = Work(
        house.settings, queue.make_app(house.settings), (sys.executable, "-m", "tests.worker.stand_in", "succeed")
    )
    work.sessions = house.sessions
    work()
    assert (house.job(job_id).status, work.pause) == (Status.SUCCEEDED, 0.2)


def test_a_worker_without_the_room_that_a_job_needs_leaves_it_and_hints_reach_every_worker(
    house: House, job_id: str
) -> None:
    supervisor(house, "fill_the_disk").run()
    house.ask(actions.resume, job_id)
    with house.sessions.begin() as session:
        session.execute(update(Job).values(needs={"disk": UNLIMITED.disk}))
        for name in ("worker-1", "worker-2", "worker-3"):
            workers.record_heartbeat(session, name, UNLIMITED)
    app = queue.make_app(house.settings)
    work = Work(house.settings, app, (sys.executable, "-m", "tests.worker.stand_in", "succeed"))
    work.sessions = house.sessions
    work()
    assert (house.job(job_id).status, house.job(job_id).attempt) == (Status.QUEUED, 1)
    Sweep("worker-1", house.settings, app, house.sessions, house.storage).notify_waiting()
    with redis.Redis.from_url(str(house.settings.broker_url)) as client:
        assert client.llen("seft") == 3
    with house.sessions.begin() as session:
        session.execute(update(Job).values(needs={"disk": 1}))
    work()
    assert house.job(job_id).status == Status.SUCCEEDED
