"""The whole service in a folder, for fault injection: servers, API, two workers with real training, and a proxy."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from core.access.keys import Scope, issue
from core.infra.bucket_backup import OWNER
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.tables import Checkpoint, Dataset, Job, JobEvent, JobMetric
from local import processes
from local.folder import LOOPBACK
from local.processes import children_of
from local.servers import Servers, make_settings
from local.stack import Api
from migrations import upgrade
from seft.client import Client
from seft.client.responses import Job as JobAnswer
from tests.claims import job_row
from tests.faults.proxy import Proxy
from tests.worker.conftest import add_measured_worker

STEPS = 24
SPEC: dict[str, Any] = {
    "model": "tiny",
    "sparsity": 0.6,
    "prune": {"method": "wanda", "calibration": {"samples": 4, "tokens": 96}},
    "repair": {
        "steps": STEPS,
        "batch_tokens": 384,
        "sequence_tokens": 96,
        "update_interval": 5,
        "density": 0.02,
        "learning_rate": 3e-3,
        "retain_tokens": 1024,
    },
    "evaluate": {"windows": 3, "tokens": 96},
}
INTERVALS = {"LEASE": 5, "HEARTBEAT": 0.5, "SWEEP": 1.5, "CHECKPOINT": 0.1, "TIDY": 3}
WORKERS = 2
TIMEOUT = 180.0


class Drill:
    """The running service, as a context manager. Everything except the workers' scratch stays in the folder."""

    def __init__(self, folder: Path, models: Path, texts: list[str], scratch: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.models, self.texts = folder.resolve(), models, texts
        self.scratch = scratch or self.folder / "scratch"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.servers = stack.enter_context(Servers(self.folder / "servers"))
            self.proxy = Proxy(self.servers.storage.port)
            stack.callback(self.proxy.close)
            variables = self.servers.environment() | {
                f"SEFT_{name}_SECONDS": str(each) for name, each in INTERVALS.items()
            }
            roots = {"SEFT_MODEL_ROOTS": json.dumps([str(self.models)]), "SEFT_RATE_LIMIT": "1000"}
            variables |= {"SEFT_SCRATCH": str(self.scratch), "SEFT_THREADS": "1", "SEFT_DEVICE": "cpu"}
            self.settings = make_settings(variables)
            variables |= roots
            upgrade(self.settings)
            self.engine = make_engine(self.settings)
            stack.callback(self.engine.dispose)
            self.sessions, self.storage = make_sessions(self.engine), Storage(self.settings)
            self.api = Api(self.servers.lock, {**os.environ, **variables})
            stack.callback(self.api.stop)
            self.api.start()
            through_proxy = {"SEFT_S3_ENDPOINT": f"http://{LOOPBACK}:{self.proxy.port}"}
            self.environment = {**os.environ, **variables, **through_proxy}
            stack.callback(self.end_workers)
            add_measured_worker(self.sessions)
            for _ in range(WORKERS):
                self.start_worker()
            self.client = stack.enter_context(self._client())
            self.dataset = self._upload()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def start_worker(self, **environment: str) -> None:
        log, command = self.folder / "workers.log", [sys.executable, "-m", "worker"]
        self.workers.append(
            processes.spawn(
                command, log=log, parent_death_signal=signal.SIGKILL, environment={**self.environment, **environment}
            )
        )

    def end_workers(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers.clear()

    def replace_workers(self) -> None:
        """Start a new worker for each that has ended."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        for _ in range(WORKERS - len(self.workers)):
            self.start_worker()

    def post(self, seed: int) -> str:
        return self.client.create_job({**SPEC, "dataset": self.dataset, "seed": seed})["id"]

    def job(self, job_id: str) -> Job:
        return job_row(self.sessions, job_id)

    def worker_of(self, job_id: str) -> subprocess.Popen[bytes] | None:
        """Return the worker that runs the job now, or None."""
        name = self.job(job_id).worker or "::"
        return next((worker for worker in self.workers if str(worker.pid) == name.split(":")[1]), None)

    def child_of(self, job_id: str) -> int | None:
        worker = self.worker_of(job_id)
        return next(iter(children_of(worker.pid)), None) if worker else None

    def wait(self, condition: Callable[[], object], seconds: float = TIMEOUT) -> bool:
        """Wait until the condition is true. Return whether it was true in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.05)
        return False

    def end(self, job_id: str) -> JobAnswer:
        """Wait until the job has ended or `TIMEOUT` has passed, and return it."""
        deadline = time.monotonic() + TIMEOUT
        while (job := self.client.job(job_id))["status"] not in {"succeeded", "failed", "cancelled"}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return job

    def sha256(self, job_id: str) -> str:
        return self.client.checkpoints(job_id)[-1]["sha256"]

    def attempts_overlap(self, job_id: str) -> bool:
        """Return whether an attempt wrote after a later one had started, or started before the earlier one ended."""
        with self.sessions.begin() as session:
            query = select(JobEvent.attempt, JobEvent.type).where(JobEvent.job_id == job_id).order_by(JobEvent.id)
            events = session.execute(query).all()
            metrics = session.scalars(select(JobMetric.attempt).where(JobMetric.job_id == job_id)).all()
        attempts = [attempt for attempt, _ in events]
        running = False
        for _, kind in events:
            if kind == "job.claimed" and running:
                return True
            running = (running or kind == "job.claimed") and kind not in {
                "job.released",
                "job.lost",
                "job.retried",
                "job.succeeded",
            }
        return attempts != sorted(attempts) or bool(metrics and max(metrics) > attempts[-1])

    def restarted(self, job_id: str) -> bool:
        """Return whether a saved state of the job was lost or refused, so that its training started again."""
        lost = JobEvent.type.in_(("state.missing", "state.refused"))
        with self.sessions.begin() as session:
            return session.scalar(select(JobEvent.id).where(JobEvent.job_id == job_id, lost).limit(1)) is not None

    def reported_steps(self, job_id: str) -> list[int]:
        """Return the steps of the job whose metrics were written, in order."""
        query = select(JobMetric.step).where(JobMetric.job_id == job_id).order_by(JobMetric.step)
        with self.sessions.begin() as session:
            return list(session.scalars(query))

    def unreferenced(self) -> list[str]:
        return unreferenced(self.sessions, self.storage)

    def damaged(self, job_id: str) -> list[str]:
        """Return the keys of the checkpoint's files whose stored bytes do not match the hash in the row."""
        with self.sessions.begin() as session:
            row = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id)).one()
        hashes = {row.prefix + file["name"]: file["sha256"] for file in row.files}
        return [key for key, sha in hashes.items() if hashlib.sha256(self.storage.read(key)).hexdigest() != sha]

    def _client(self) -> Client:
        with self.sessions.begin() as session:
            _, secret = issue(session, "default", "faults", Scope.ADMIN)
        return Client(self.api.url, secret)

    def _upload(self) -> str:
        data = self.folder / "data.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts))
        return self.client.upload_dataset(data)["id"]


def unreferenced(sessions: sessionmaker[Session], storage: Storage) -> list[str]:
    """Return the keys of objects without a row of a checkpoint or a dataset, except for the id of the service."""
    with sessions.begin() as session:
        referenced = {OWNER, *session.scalars(select(Dataset.object_key))}
        for row in session.scalars(select(Checkpoint)):
            referenced |= {row.prefix + file["name"] for file in row.files}
    return [key for key in storage.keys("") if key not in referenced]


def alive(process: subprocess.Popen[bytes]) -> bool:
    with suppress(ProcessLookupError):
        return process.poll() is None
    return False
