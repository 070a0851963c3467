"""A house for worker tests: settings with short times, a dataset, jobs in the table."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from core import ids
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.jobs import attempts, jobs
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Checkpoint, Dataset, Job, JobEvent, JobMetric
from local import processes
from worker.attempt import Supervisor

TENANT = "default"


@dataclass(frozen=True)
class House:
    """One service's settings, database and storage, with what tests ask of them."""

    settings: Settings
    sessions: sessionmaker[Session]
    storage: Storage

    def add_dataset(self, texts: list[str]) -> str:
        content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        sha256, file_id = hashlib.sha256(content).hexdigest(), ids.new("file")
        self.storage.put(f"datasets/{sha256}.jsonl", content)
        with self.sessions.begin() as session:
            session.add(
                Dataset(
                    id=file_id,
                    tenant=TENANT,
                    name="data.jsonl",
                    format="text",
                    sha256=sha256,
                    bytes=len(content),
                    records=len(texts),
                    object_key=f"datasets/{sha256}.jsonl",
                )
            )
        return file_id

    def add_job(self, dataset: str, **spec: Any) -> str:
        asked = JobSpec.model_validate({"model": "tiny", "sparsity": 0.6, "dataset": dataset, **spec})
        with self.sessions.begin() as session:
            return jobs.create(session, TENANT, asked, None, "")[0].id

    def claim(self) -> Attempt:
        with self.sessions.begin() as session:
            attempt = attempts.claim(session, "worker-1", self.settings.lease_seconds)
        assert attempt is not None
        return attempt

    def job(self, job_id: str) -> Job:
        with self.sessions.begin() as session:
            return session.get_one(Job, job_id)

    def ask(self, wish: Callable[[Session, str, str], Job], job_id: str) -> None:
        with self.sessions.begin() as session:
            wish(session, TENANT, job_id)

    def events(self, job_id: str) -> list[str]:
        with self.sessions.begin() as session:
            query = select(JobEvent.type).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
            return list(session.scalars(query))

    def told(self, job_id: str) -> list[JobEvent]:
        with self.sessions.begin() as session:
            return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id)))

    def claims(self) -> list[tuple[str, str]]:
        """(job, worker) of every claim."""
        with self.sessions.begin() as session:
            query = select(JobEvent).where(JobEvent.type == "job.claimed").order_by(JobEvent.id)
            return [(event.job_id, event.data["worker"]) for event in session.scalars(query)]

    def metrics(self, job_id: str) -> dict[int, dict[str, Any]]:
        with self.sessions.begin() as session:
            rows = session.scalars(select(JobMetric).where(JobMetric.job_id == job_id).order_by(JobMetric.step))
            return {row.step: row.values for row in rows}

    def checkpoint(self, job_id: str) -> Checkpoint:
        with self.sessions.begin() as session:
            return session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id)).one()


def alive(pid: int) -> bool:
    """Whether a process with this id exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> list[int]:
    """Of all threads of a process."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for children in lists for child in children.split()]


def wait_for(truth: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def variables(settings: Settings) -> dict[str, str]:
    """The environment in which a process reads these settings."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    secrets = {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}
    lists = {
        name: json.dumps([str(each) for each in value]) for name, value in values.items() if isinstance(value, list)
    }
    texts = {name: str(value) for name, value in values.items() if value is not None}
    return {f"SEFT_{name.upper()}": value for name, value in {**texts, **secrets, **lists}.items()}


class Workers:
    """Worker processes of one house. What is left of them at the end is killed."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, house: House, *command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **variables(house.settings)}
        spawned = processes.spawn(
            [sys.executable, "-m", *command], log=self.log, orphaned=signal.SIGKILL, environment=environment
        )
        self.started.append(spawned)
        return spawned


@pytest.fixture
def workers(tmp_path: Path, settings: Settings) -> Iterator[Workers]:
    """Starts worker processes; their log is shown when the test fails."""
    workers = Workers(tmp_path / "workers.log")
    yield workers
    for process in workers.started:
        process.kill()
        process.wait()
    if workers.log.exists():
        sys.stdout.write(workers.log.read_text())


@pytest.fixture
def open_house() -> Iterator[Callable[[Settings], House]]:
    """Makes a house for settings; its connections are closed at the end."""
    engines: list[Engine] = []

    def make(settings: Settings) -> House:
        engines.append(engine := make_engine(settings))
        storage = Storage(settings)
        storage.ensure_bucket()
        return House(settings, make_sessions(engine), storage)

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def house(settings: Settings, open_house: Callable[[Settings], House]) -> House:
    """A house in which everything happens soon."""
    soon = {"lease_seconds": 3, "heartbeat_seconds": 0.3, "sweep_seconds": 0.5, "checkpoint_seconds": 0.5}
    return open_house(settings.model_copy(update=soon))


def supervisor(house: House, scenario: str, draining: threading.Event | None = None) -> Supervisor:
    return Supervisor(
        house.claim(),
        house.sessions,
        house.storage,
        house.settings,
        draining=draining or threading.Event(),
        training=(sys.executable, "-m", "tests.worker.stand_in", scenario),
    )


@pytest.fixture
def job_id(house: House) -> str:
    """A queued job."""
    return house.add_job(house.add_dataset(["one", "two"]))
