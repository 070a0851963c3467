"""Worker processes that are started, stopped, killed, and disconnected from their servers.

Everything is real except the training process, which follows the protocol but trains nothing.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import redis
from pydantic import PostgresDsn

from core.infra import queue
from core.states import Status
from local.processes import children_of
from local.servers import Servers
from tests.waiting import alive, wait_for
from tests.worker.conftest import Backend, Workers

STAND_IN = "tests.worker.stand_in_worker"


def test_the_process_with_the_secrets_loads_no_torch() -> None:
    code = "import sys, worker.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_health_check_reports_the_workers_of_this_host_and_loads_no_celery(
    backend: Backend, workers: Workers
) -> None:
    code = "import sys, worker.health; sys.exit('celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert workers.start(backend, "worker", "health").wait(30) == 1
    assert "is registered" in workers.log.read_text()
    workers.start(backend, STAND_IN, "succeed")
    wait_for(lambda: workers.start(backend, "worker", "health").wait(30) == 0)


def test_the_health_check_reports_an_unreachable_database_in_one_line(backend: Backend, workers: Workers) -> None:
    url = PostgresDsn(f"{str(backend.settings.database_url).rpartition('/')[0]}/nowhere")
    unreachable = replace(backend, settings=backend.settings.model_copy(update={"database_url": url}))
    assert workers.start(unreachable, "worker", "health").wait(30) == 1
    [line] = workers.log.read_text().splitlines()
    assert line.startswith("the database is unreachable: ")
    assert '"nowhere"' in line


def ended(backend: Backend, jobs: list[str]) -> bool:
    return all(Status(backend.job(job).status).final for job in jobs)


def test_two_workers_run_every_job_once_although_all_notifications_are_lost(backend: Backend, workers: Workers) -> None:
    dataset = backend.add_dataset(["one " * 1024, "two"])
    jobs = [backend.add_job(dataset) for _ in range(12)]
    app = queue.make_app(backend.settings)
    for _ in jobs:
        queue.notify(app)
    with redis.Redis.from_url(str(backend.settings.broker_url)) as client:
        assert client.dbsize()
        client.flushall()
    for _ in range(2):
        workers.start(backend, STAND_IN, "succeed_slowly")
    wait_for(lambda: ended(backend, jobs))
    assert {backend.job(job).status for job in jobs} == {Status.SUCCEEDED}
    assert Counter(job for job, _ in backend.claims()) == dict.fromkeys(jobs, 1)
    assert len({worker for _, worker in backend.claims()}) == 2


def test_the_first_signal_releases_the_job_and_another_worker_finishes_it(backend: Backend, workers: Workers) -> None:
    job = backend.add_job(backend.add_dataset(["one " * 1024, "two"]))
    first = workers.start(backend, STAND_IN, "save_when_asked")
    wait_for(lambda: backend.job(job).step == 4)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    assert (backend.job(job).status, backend.job(job).failures) == (Status.QUEUED, 0)
    workers.start(backend, STAND_IN, "save_when_asked")
    wait_for(lambda: ended(backend, [job]))
    assert (backend.job(job).status, backend.job(job).attempt) == (Status.SUCCEEDED, 2)


def test_the_processes_of_a_killed_worker_end_and_its_job_is_requeued(backend: Backend, workers: Workers) -> None:
    job = backend.add_job(backend.add_dataset(["one " * 1024, "two"]))
    first = workers.start(backend, STAND_IN, "hang_with_child")
    wait_for(lambda: backend.job(job).progress == 0.5)
    pids = backend.settings.scratch / job / "1" / "pids"
    processes = [*children_of(first.pid), *map(int, pids.read_text().split())]
    assert all(alive(process) for process in processes)
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(process) for process in processes))
    workers.start(backend, STAND_IN, "succeed_slowly")
    wait_for(lambda: ended(backend, [job]))
    assert (backend.job(job).status, backend.job(job).failures) == (Status.SUCCEEDED, 1)
    assert "job.lost" in backend.events(job)


def test_a_stopped_worker_that_continues_after_losing_its_job_changes_nothing(
    backend: Backend, workers: Workers
) -> None:
    job = backend.add_job(backend.add_dataset(["one " * 1024, "two"]))
    first = workers.start(backend, STAND_IN, "hang_with_child")
    wait_for(lambda: backend.job(job).progress == 0.5)
    processes = children_of(first.pid)
    first.send_signal(signal.SIGSTOP)
    workers.start(backend, STAND_IN, "succeed_slowly")
    wait_for(lambda: ended(backend, [job]))
    before, objects = backend.job(job), backend.storage.keys("jobs/")
    first.send_signal(signal.SIGCONT)
    wait_for(lambda: not any(alive(process) for process in processes))
    wait_for(lambda: not (backend.settings.scratch / job / "1").exists())
    assert backend.job(job).updated_at == before.updated_at
    assert backend.storage.keys("jobs/") == objects
    assert first.poll() is None


def test_the_second_signal_ends_a_worker_at_once(backend: Backend, workers: Workers) -> None:
    job = backend.add_job(backend.add_dataset(["one " * 1024, "two"]))
    worker = workers.start(backend, STAND_IN, "hang_with_child")
    wait_for(lambda: backend.job(job).progress == 0.5)
    processes = children_of(worker.pid)
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: "Warm shutdown" in Path(workers.log).read_text())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 1
    wait_for(lambda: not any(alive(process) for process in processes))


def test_a_worker_survives_a_restart_of_its_servers(backend: Backend, workers: Workers, servers: Servers) -> None:
    dataset = backend.add_dataset(["one " * 1024, "two"])
    worker = workers.start(backend, STAND_IN, "succeed_slowly")
    job = backend.add_job(dataset)
    wait_for(lambda: ended(backend, [job]))
    try:
        servers.valkey.kill()
        servers.postgres.kill()
        wait_for(lambda: "sweep.failed" in workers.log.read_text())
    finally:
        servers.valkey.start()
        servers.postgres.start()
    job = backend.add_job(dataset)
    wait_for(lambda: ended(backend, [job]))
    assert worker.poll() is None
