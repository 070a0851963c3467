"""Fixtures for worker tests: a backend with short times, jobs, worker processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, sessionmaker

from core import ids
from core.capability import CPU, Capability
from core.infra import queue
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.jobs import jobs
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Checkpoint, Dataset, Job, JobEvent, JobMetric, Worker
from local import processes
from tests import claims
from tests.claims import UNLIMITED
from tests.waiting import wait_for
from worker import device, memory
from worker.attempt import Supervisor
from worker.sweep import Sweep

TENANT = "default"


@dataclass(frozen=True)
class Backend:
    """The settings, database and storage of one service, and helpers for tests."""

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
        job_spec = JobSpec.model_validate(
            {"model": "tiny", "sparsity": 0.6, "dataset": dataset, "dtype": "float32", **spec}
        )
        with self.sessions.begin() as session:
            return jobs.create(session, TENANT, job_spec, None, "").id

    def claim(self, capability: Capability = UNLIMITED) -> Attempt:
        with self.sessions.begin() as session:
            attempt = claims.claim(session, "worker-1", self.settings.lease_seconds, capability)
        assert attempt is not None
        return attempt

    def job(self, job_id: str) -> Job:
        return claims.job_row(self.sessions, job_id)

    def request(self, action: Callable[[Session, str, str], Job], job_id: str) -> None:
        with self.sessions.begin() as session:
            action(session, TENANT, job_id)

    def events(self, job_id: str) -> list[str]:
        return [row.type for row in self.event_rows(job_id)]

    def event_rows(self, job_id: str) -> list[JobEvent]:
        with self.sessions.begin() as session:
            return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id)))

    def sweep(self, storage: Storage | None = None) -> Sweep:
        """Return the sweep of a worker. It uses another object storage if one is given."""
        app = queue.make_app(self.settings)
        return Sweep("worker-1", self.settings, app, self.sessions, storage or self.storage)

    def wait_for_renewals(self, job_id: str) -> None:
        """Wait until the lease of a job has been renewed twice, or until the job does not run."""
        for _ in range(2):
            before = self.job(job_id).lease_expires_at
            wait_for(lambda before=before: before is None or self.job(job_id).lease_expires_at != before)  # type: ignore[misc]

    def claims(self) -> list[tuple[str, str]]:
        """Return (job, worker) of every claim."""
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


def variables(settings: Settings) -> dict[str, str]:
    """Return the environment variables of these settings."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    secrets = {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}
    lists = {
        name: json.dumps([str(each) for each in value]) for name, value in values.items() if isinstance(value, list)
    }
    objects = {name: json.dumps(value) for name, value in values.items() if isinstance(value, dict)}
    texts = {name: str(value) for name, value in values.items() if value is not None}
    return {f"SEFT_{name.upper()}": value for name, value in {**texts, **secrets, **lists, **objects}.items()}


def add_measured_worker(sessions: sessionmaker[Session]) -> None:
    """Add a worker that has measured a CPU as this one and has ended. Other workers then do not measure it again."""
    row = {
        "name": "measured:1:1",
        "host": "measured",
        "pid": 1,
        "device": CPU,
        "device_name": device.cpu_name(),
        "flops": 5e10,
        "flops_bfloat16": 5e10,
        "versions": {},
        "seen_at": func.now() - timedelta(hours=1),
    }
    with sessions.begin() as session:
        session.execute(insert(Worker).values(row).on_conflict_do_nothing())


class Workers:
    """Starts worker processes of a backend. They do not measure the CPU."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, backend: Backend, *command: str) -> subprocess.Popen[bytes]:
        add_measured_worker(backend.sessions)
        environment = {**os.environ, **variables(backend.settings)}
        process = processes.spawn(
            [sys.executable, "-m", *command], log=self.log, parent_death_signal=signal.SIGKILL, environment=environment
        )
        self.processes.append(process)
        return process


@pytest.fixture
def workers(tmp_path: Path, settings: Settings) -> Iterator[Workers]:
    """Starts worker processes and kills them at the end. Their log is shown if the test fails."""
    workers = Workers(tmp_path / "workers.log")
    yield workers
    for process in workers.processes:
        process.kill()
        process.wait()
    if workers.log.exists():
        sys.stdout.write(workers.log.read_text())


@pytest.fixture
def open_backend() -> Iterator[Callable[[Settings], Backend]]:
    """Creates backends from settings and closes their connections at the end."""
    engines: list[Engine] = []

    def make(settings: Settings) -> Backend:
        engines.append(engine := make_engine(settings))
        storage = Storage(settings)
        storage.ensure_bucket()
        return Backend(settings, make_sessions(engine), storage)

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def backend(settings: Settings, open_backend: Callable[[Settings], Backend]) -> Backend:
    """A backend with short times."""
    times = {"lease_seconds": 3, "heartbeat_seconds": 0.3, "sweep_seconds": 0.5, "checkpoint_seconds": 0.5}
    return open_backend(settings.model_copy(update=times))


def supervisor(backend: Backend, scenario: str, draining: threading.Event | None = None) -> Supervisor:
    return Supervisor(
        backend.claim(),
        backend.sessions,
        backend.storage,
        backend.settings,
        draining=draining or threading.Event(),
        training=(sys.executable, "-m", "tests.worker.stand_in", scenario),
    )


@pytest.fixture
def job_id(backend: Backend) -> str:
    """A queued job."""
    return backend.add_job(backend.add_dataset(["one " * 1024, "two"]))


class Running:
    """Runs a supervisor in a thread, as a worker does."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.thread = threading.Thread(target=supervisor.run, daemon=True)

    def __enter__(self) -> Supervisor:
        self.thread.start()
        return self.supervisor

    def __exit__(self, *_: object) -> None:
        self.supervisor.draining.set()
        self.thread.join()


@pytest.fixture
def set_oom_kills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], object]:
    """Return a function that sets how many processes the kernel has killed because the memory was full."""
    counts = tmp_path / "memory.events"
    monkeypatch.setattr("worker.memory.KILLS", (counts, *memory.KILLS))
    return lambda kills: counts.write_text(f"oom_kill {kills}\n")


@pytest.fixture
def away() -> threading.Event:
    """While it is set, the hub of a test answers 503."""
    return threading.Event()


@pytest.fixture
def seen() -> list[tuple[str, str | None]]:
    """Paths and tokens of the requests to the hub of a test."""
    return []
