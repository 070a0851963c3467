"""The sweep of a worker: jobs set aside for want of room go on, and a step that fails keeps no other from its turn."""

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import redis
from botocore.exceptions import ClientError
from sqlalchemy import update

from core.capability import UNLIMITED
from core.infra import queue
from core.infra.storage import Storage
from core.jobs import recovery
from core.states import Reason, Status
from core.tables import Job
from tests.worker.conftest import House, supervisor
from worker.disk_space import RESERVE_BYTES
from worker.sweep import Sweep


def test_a_full_disk_pauses_the_job_until_there_is_room(house: House, job_id: str) -> None:
    missing = 1 << 20
    supervisor(house, "fill_the_disk").run()
    job = house.job(job_id)
    assert job.reason is not None
    assert (job.status, job.failures, job.reason["code"]) == (Status.PAUSED, 0, Reason.DISK_FULL)
    assert job.reason["needs"] >= missing + (1 << 16) + RESERVE_BYTES
    with house.sessions.begin() as session:
        assert recovery.resume_waiting_for_space(session, Reason.DISK_FULL, replace(UNLIMITED, disk=missing)) == []
        assert recovery.resume_waiting_for_space(session, Reason.STORAGE_FULL, UNLIMITED) == []
    sweep = Sweep("worker-1", house.settings, queue.make_app(house.settings), house.sessions, house.storage)
    sweep.resume_waiting_for_space()
    assert house.job(job_id).status == Status.QUEUED
    supervisor(house, "succeed").run()
    assert house.job(job_id).status == Status.SUCCEEDED
    assert house.events(job_id)[1:5] == ["job.claimed", "job.released", "job.paused", "job.resumed"]


def test_a_step_of_the_sweep_that_fails_keeps_no_other_from_being_taken(house: House, job_id: str) -> None:
    class Lame(Sweep):
        def requeue_lost(self) -> None:
            raise RuntimeError("It fails in every round.")

    with house.sessions.begin() as session:
        session.execute(update(Job).values(notified_at=None))
    app = queue.make_app(house.settings)
    Lame("worker-1", house.settings, app, house.sessions, house.storage).sweep_once()
    with redis.Redis.from_url(str(house.settings.broker_url)) as client:
        assert client.llen("seft") == 1


def test_a_bucket_that_is_away_takes_nothing(house: House) -> None:
    away = Storage(house.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    sweep = Sweep("worker-1", house.settings, queue.make_app(house.settings), house.sessions, away)
    assert not sweep._storage_takes()


def test_a_full_bucket_pauses_the_job_until_it_takes_objects_again(house: House, job_id: str) -> None:
    class Full(Storage):
        def upload(self, source: Path | BinaryIO, key: str) -> None:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 507}}, "PutObject")  # type: ignore[typeddict-item]

        def put(self, key: str, content: bytes) -> None:
            raise ClientError({}, "PutObject")

    full = Full(house.settings)
    supervisor(House(house.settings, house.sessions, full), "succeed").run()
    job = house.job(job_id)
    assert job.reason is not None
    assert (job.status, job.failures, job.reason["code"]) == (Status.PAUSED, 0, Reason.STORAGE_FULL)
    for storage, status in ((full, Status.PAUSED), (house.storage, Status.QUEUED)):
        Sweep(
            "worker-1", house.settings, queue.make_app(house.settings), house.sessions, storage
        ).resume_waiting_for_space()
        assert house.job(job_id).status == status
