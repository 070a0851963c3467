"""Worker processes as an operator meets them: started, stopped, killed, and cut off from their servers.

Everything is real but the training process, which speaks the protocol and trains nothing.
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
from local.servers import Servers
from tests.worker.conftest import House, Workers, alive, children_of, wait_for

STAND_IN = "tests.worker.stand_in_worker"


def test_the_process_that_holds_the_secrets_loads_no_torch() -> None:
    look = "import sys, worker.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0


def test_the_health_check_tells_of_this_hosts_workers_and_loads_no_celery(house: House, workers: Workers) -> None:
    look = "import sys, worker.health; sys.exit('celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
    assert workers.start(house, "worker", "health").wait(30) == 1
    assert "has shown itself" in workers.log.read_text()
    workers.start(house, STAND_IN, "succeed")
    wait_for(lambda: workers.start(house, "worker", "health").wait(30) == 0)


def test_the_health_check_says_in_one_line_that_the_database_is_away(house: House, workers: Workers) -> None:
    nowhere = PostgresDsn(f"{str(house.settings.database_url).rpartition('/')[0]}/nowhere")
    lost = replace(house, settings=house.settings.model_copy(update={"database_url": nowhere}))
    assert workers.start(lost, "worker", "health").wait(30) == 1
    [line] = workers.log.read_text().splitlines()
    assert line.startswith("the database does not answer: ")
    assert '"nowhere"' in line


def ended(house: House, jobs: list[str]) -> bool:
    return all(Status(house.job(job).status).final for job in jobs)


def test_two_workers_do_every_job_once_though_all_messages_are_lost(house: House, workers: Workers) -> None:
    dataset = house.add_dataset(["one", "two"])
    jobs = [house.add_job(dataset) for _ in range(50)]
    app = queue.make_app(house.settings)
    for _ in jobs:
        queue.notify(app)
    with redis.Redis.from_url(str(house.settings.broker_url)) as client:
        assert client.dbsize()
        client.flushall()
    for _ in range(2):
        workers.start(house, STAND_IN, "succeed_slowly")
    wait_for(lambda: ended(house, jobs), seconds=240)
    assert {house.job(job).status for job in jobs} == {Status.SUCCEEDED}
    assert Counter(job for job, _ in house.claims()) == dict.fromkeys(jobs, 1)
    assert len({worker for _, worker in house.claims()}) == 2


def test_the_first_signal_gives_the_job_back_and_another_worker_ends_it(house: House, workers: Workers) -> None:
    job = house.add_job(house.add_dataset(["one", "two"]))
    first = workers.start(house, STAND_IN, "save_when_told")
    wait_for(lambda: house.job(job).step == 4)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0
    assert (house.job(job).status, house.job(job).failures) == (Status.QUEUED, 0)
    workers.start(house, STAND_IN, "save_when_told")
    wait_for(lambda: ended(house, [job]))
    assert (house.job(job).status, house.job(job).attempt) == (Status.SUCCEEDED, 2)


def test_a_killed_worker_takes_all_its_processes_along_and_its_job_is_taken_back(
    house: House, workers: Workers
) -> None:
    job = house.add_job(house.add_dataset(["one", "two"]))
    first = workers.start(house, STAND_IN, "hang_with_child")
    wait_for(lambda: house.job(job).progress == 0.5)
    pids = house.settings.scratch / job / "1" / "pids"
    family = [*children_of(first.pid), *map(int, pids.read_text().split())]
    assert all(alive(process) for process in family)
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(process) for process in family), seconds=5)
    workers.start(house, STAND_IN, "succeed_slowly")
    wait_for(lambda: ended(house, [job]))
    assert (house.job(job).status, house.job(job).failures) == (Status.SUCCEEDED, 1)
    assert "job.lost" in house.events(job)


def test_a_worker_that_was_thought_dead_comes_back_and_changes_nothing(house: House, workers: Workers) -> None:
    job = house.add_job(house.add_dataset(["one", "two"]))
    first = workers.start(house, STAND_IN, "hang_with_child")
    wait_for(lambda: house.job(job).progress == 0.5)
    family = children_of(first.pid)
    first.send_signal(signal.SIGSTOP)
    workers.start(house, STAND_IN, "succeed_slowly")
    wait_for(lambda: ended(house, [job]))
    before, objects = house.job(job), house.storage.keys("jobs/")
    first.send_signal(signal.SIGCONT)
    wait_for(lambda: not any(alive(process) for process in family), seconds=10)
    wait_for(lambda: not (house.settings.scratch / job / "1").exists())
    assert house.job(job).updated_at == before.updated_at
    assert house.storage.keys("jobs/") == objects
    assert first.poll() is None


def test_the_second_signal_ends_a_worker_at_once(house: House, workers: Workers) -> None:
    job = house.add_job(house.add_dataset(["one", "two"]))
    worker = workers.start(house, STAND_IN, "hang_with_child")
    wait_for(lambda: house.job(job).progress == 0.5)
    family = children_of(worker.pid)
    worker.send_signal(signal.SIGTERM)
    wait_for(lambda: "Warm shutdown" in Path(workers.log).read_text())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5) == 1
    wait_for(lambda: not any(alive(process) for process in family), seconds=5)


def test_a_worker_outlives_its_servers(house: House, workers: Workers, servers: Servers) -> None:
    dataset = house.add_dataset(["one", "two"])
    worker = workers.start(house, STAND_IN, "succeed_slowly")
    job = house.add_job(dataset)
    wait_for(lambda: ended(house, [job]))
    servers.valkey.kill()
    servers.postgres.kill()
    wait_for(lambda: "sweep.failed" in workers.log.read_text())
    servers.valkey.start()
    servers.postgres.start()
    job = house.add_job(dataset)
    wait_for(lambda: ended(house, [job]))
    assert worker.poll() is None
