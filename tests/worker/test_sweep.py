"""The sweep of a worker: it resumes jobs that waited for space, and a failing step does not prevent the others."""

import errno
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

import pytest
import redis
from botocore.exceptions import ClientError, EndpointConnectionError
from sqlalchemy import text, update
from typing_extensions import override

from core import workers
from core.infra import queue
from core.infra.storage import Storage
from core.jobs import actions, attempts, recovery
from core.states import Reason, Status
from core.tables import Job
from tests.claims import UNLIMITED
from tests.worker.conftest import Backend, supervisor
from worker.disk_space import RESERVE_BYTES
from worker.protocol import Task
from worker.sweep import NOT_CONSUMING, Sweep


def test_a_full_disk_pauses_the_job_until_there_is_space(backend: Backend, job_id: str) -> None:
    missing = 1 << 20
    supervisor(backend, "fill_the_disk").run()
    job = backend.job(job_id)
    assert job.reason is not None
    assert (job.status, job.failures, job.reason["code"]) == (Status.PAUSED, 0, Reason.DISK_FULL)
    assert job.reason["needs"] >= missing + (1 << 16) + RESERVE_BYTES
    with backend.sessions.begin() as session:
        assert recovery.resume_paused_for(session, Reason.DISK_FULL, replace(UNLIMITED, disk=missing)) == []
        assert recovery.resume_paused_for(session, Reason.STORAGE_FULL, UNLIMITED) == []
    backend.sweep().resume_paused()
    assert backend.job(job_id).status == Status.QUEUED
    supervisor(backend, "succeed").run()
    assert backend.job(job_id).status == Status.SUCCEEDED
    assert backend.events(job_id)[1:5] == ["job.claimed", "job.released", "job.paused", "job.resumed"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_space_for_a_folder_pauses_the_job(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(path: Path, **_: object) -> None:
        raise OSError(number, f"No space left on device: {path}")

    attempt = supervisor(backend, "succeed")
    with monkeypatch.context() as full:
        full.setattr(Path, "mkdir", fail)
        attempt.run()
    job = backend.job(job_id)
    assert job.reason is not None
    assert (job.status, job.failures, job.reason["code"]) == (Status.PAUSED, 0, Reason.DISK_FULL)
    assert job.reason["needs"] == RESERVE_BYTES


def test_a_job_continues_after_an_exceeded_quota_although_no_more_bytes_are_free(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Task, folder: Path) -> None:
        raise OSError(errno.EDQUOT, f"Disk quota exceeded: {folder}")

    attempt = supervisor(backend, "succeed")
    with monkeypatch.context() as full:
        full.setattr(Task, "write", fail)
        attempt.run()
    assert backend.job(job_id).status == Status.PAUSED
    backend.sweep().resume_paused()
    assert backend.job(job_id).status == Status.QUEUED


def test_a_job_that_is_paused_again_and_again_waits_longer_each_time(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resumed() -> list[str]:
        with backend.sessions.begin() as session:
            return recovery.resume_paused_for(session, Reason.DISK_FULL, UNLIMITED)

    waits = []
    for _ in range(4):
        with backend.sessions.begin() as session:
            session.execute(text("UPDATE job_events SET created_at = created_at - interval '5 hours'"))
            attempts.pause_for(session, backend.claim(), Reason.DISK_FULL, "m", needs=1)
        waited = 0
        while not resumed():
            with backend.sessions.begin() as session:
                session.execute(text("UPDATE job_events SET created_at = created_at - interval '30 s'"))
            waited += 30
        waits.append(waited)
    assert waits == [0, 30, 90, 210], "all pauses of a day count"
    with backend.sessions.begin() as session:
        session.execute(text("UPDATE job_events SET created_at = created_at - interval '1 day'"))
        attempts.pause_for(session, backend.claim(), Reason.DISK_FULL, "m", needs=1)
    assert resumed() == [job_id], "the pauses of yesterday do not count"
    monkeypatch.setattr(recovery, "LONGEST_WAIT", 0.0)
    with backend.sessions.begin() as session:
        attempts.pause_for(session, backend.claim(), Reason.DISK_FULL, "m", needs=1)
    assert resumed() == [job_id]


def test_a_failing_step_of_the_sweep_does_not_prevent_the_others(backend: Backend, job_id: str) -> None:
    class Failing(Sweep):
        def requeue_lost(self) -> None:
            raise RuntimeError("It fails in every round.")

    with backend.sessions.begin() as session:
        session.execute(update(Job).values(notified_at=None))
    app = queue.make_app(backend.settings)
    sweep = Failing("worker-1", backend.settings, app, backend.sessions, backend.storage)
    sweep.run_once([sweep.requeue_lost, sweep.notify_waiting])
    with redis.Redis.from_url(str(backend.settings.broker_url)) as client:
        assert client.llen("seft") == 1


class Hanging(Sweep):
    """A sweep whose steps can hang, as if a server did not answer. All its threads end with the `with` block."""

    def __init__(self, backend: Backend) -> None:
        settings = backend.settings.model_copy(update={"sweep_seconds": 0.01})
        super().__init__("worker-1", settings, queue.make_app(settings), backend.sessions, backend.storage)
        self.other_threads, self.over = set(threading.enumerate()), threading.Event()

    def hang(self) -> None:
        self.over.wait()
        raise SystemExit

    @override
    def run_once(self, steps: Iterable[Callable[[], None]]) -> None:
        if self.over.is_set():
            raise SystemExit
        super().run_once(steps)

    @override
    def _repeat(self, steps: Sequence[Callable[[], None]]) -> None:
        with suppress(SystemExit):
            super()._repeat(steps)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in set(threading.enumerate()) - self.other_threads:
            thread.join()


def test_a_storage_that_does_not_answer_does_not_delay_the_heartbeat(backend: Backend) -> None:
    beats, done = itertools.count(1), threading.Event()

    class Waiting(Hanging):
        def send_heartbeat(self) -> None:
            if next(beats) == 3:
                done.set()
                self.hang()

        def calibrate(self) -> None:
            """Start no measurement."""

        def resume_paused(self) -> None:
            self.hang()

        def expire(self) -> None:
            self.hang()

    with Waiting(backend):
        assert done.wait()


def test_a_worker_without_notifications_ends_only_while_the_broker_answers(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, app = list[int](), queue.make_app(backend.settings)
    monkeypatch.setattr("os._exit", ends.append)
    monkeypatch.setattr(workers, "is_not_consuming", lambda session, name: True)
    monkeypatch.setattr(workers, "MAX_MISSED_SWEEPS", 1)
    sweep = Sweep("worker-1", backend.settings, app, backend.sessions, backend.storage)
    with monkeypatch.context() as down:
        down.setitem(app.conf, "broker_url", "redis://127.0.0.1:9")
        for _ in range(4):
            sweep.run_once([sweep.send_heartbeat])
    assert not ends
    for _ in range(2):
        sweep.run_once([sweep.send_heartbeat])
    assert ends == [NOT_CONSUMING]


def test_a_long_list_of_objects_delays_no_paused_job(backend: Backend) -> None:
    rounds, resumed = itertools.count(1), threading.Event()

    class Listing(Hanging):
        def send_heartbeat(self) -> None:
            self.hang()

        def expire(self) -> None:
            self.hang()

        def resume_paused(self) -> None:
            if next(rounds) == 3:
                resumed.set()
                self.hang()

    with Listing(backend):
        assert resumed.wait()


def test_an_unreachable_bucket_accepts_no_writes(backend: Backend) -> None:
    unreachable = Storage(backend.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    assert not backend.sweep(unreachable)._storage_accepts_writes()


def test_an_outage_of_the_storage_pauses_the_job_until_it_answers(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(Storage):
        """Does not answer, except that a job finds what it needs to start."""

        def upload(self, source: Path | BinaryIO, key: str, sent: object = None) -> None:
            raise EndpointConnectionError(endpoint_url="http://storage.internal:9000")

        def put(self, key: str, content: bytes) -> None:
            raise EndpointConnectionError(endpoint_url="http://storage.internal:9000")

    class GoneAtStart(Away):
        def download(self, key: str, path: Path) -> None:
            raise EndpointConnectionError(endpoint_url="http://storage.internal:9000")

    monkeypatch.setattr("worker.retries.RETRY_SECONDS", 0.0)
    monkeypatch.setattr("core.jobs.recovery.FIRST_WAIT", 0.0)
    supervisor(backend, "succeed_when_resumed").run()  # its process crashes after two states are stored
    for _ in range(backend.settings.max_failures):
        for away in (Away(backend.settings), GoneAtStart(backend.settings)):
            assert not supervisor(replace(backend, storage=away), "succeed_when_resumed").run()
            backend.sweep(away).resume_paused()
            job = backend.job(job_id)
            assert job.reason is not None
            assert (job.status, job.failures) == (Status.PAUSED, 1), "the outage is no failure"
            assert job.reason["code"] == "storage_unreachable"
            assert job.reason["message"].startswith("The object storage does not answer")
            assert "internal" not in job.reason["message"]
            backend.sweep().resume_paused()
            assert backend.job(job_id).status == Status.QUEUED
    supervisor(backend, "succeed_when_resumed").run()
    assert backend.job(job_id).status == Status.SUCCEEDED
    assert "state.missing" not in backend.events(job_id)


def test_a_job_that_waits_for_the_storage_can_be_paused_and_cancelled(backend: Backend, job_id: str) -> None:
    with backend.sessions.begin() as session:
        attempts.pause_for(session, backend.claim(), Reason.STORAGE_UNREACHABLE, "m", needs=1)
    backend.request(actions.pause, job_id)
    backend.sweep().resume_paused()
    job = backend.job(job_id)
    assert job.reason is not None
    assert (job.status, job.reason["code"]) == (Status.PAUSED, Reason.ASKED)
    backend.request(actions.cancel, job_id)
    assert backend.job(job_id).status == Status.CANCELLED


def test_a_full_bucket_pauses_the_job_until_it_accepts_objects(backend: Backend, job_id: str) -> None:
    class Full(Storage):
        def upload(self, source: Path | BinaryIO, key: str, sent: object = None) -> None:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 507}}, "PutObject")  # type: ignore[typeddict-item]

        def put(self, key: str, content: bytes) -> None:
            raise ClientError({}, "PutObject")

    full = Full(backend.settings)
    assert supervisor(Backend(backend.settings, backend.sessions, full), "succeed").run(), (
        "the worker may claim the next job at once"
    )
    job = backend.job(job_id)
    assert job.reason is not None
    assert (job.status, job.failures, job.reason["code"]) == (Status.PAUSED, 0, Reason.STORAGE_FULL)
    for storage, status in ((full, Status.PAUSED), (backend.storage, Status.QUEUED)):
        backend.sweep(storage).resume_paused()
        assert backend.job(job_id).status == status
