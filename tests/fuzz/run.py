"""A run: an API as a process, with a dataset, a model and a job in it, and schemathesis calling all its operations."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.access.keys import Scope, issue
from core.infra.database import make_engine, make_sessions
from core.settings import Settings
from local.folder import LOOPBACK, FolderLock
from local.stack import Api
from seft.client import Client
from tests.fuzz.hooks import RIGHT
from tests.hollow import write_hollow
from tests.hub import hub
from tests.worker.conftest import variables

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fuzzed:
    """What came of it."""

    broken: bool
    """Whether an answer broke a promise of the OpenAPI."""
    output: str
    statuses: Counter[int]
    """The answers that the API's own log has, by their status."""


def fuzz(settings: Settings, folder: Path, *, examples: int, seed: int | None = None) -> Fuzzed:
    """Call every operation with up to `examples` generated requests in each phase, right ones and wrong ones."""
    model = write_hollow(folder / "models" / "tiny")
    ours = settings.model_copy(update={"model_roots": [model.parent], "rate_limit": 0.0, "log_format": "json"})
    with _serving(ours, folder / "server") as (api, secret):
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={HERE / 'schemathesis.toml'}",
            "run",
            f"{api.url}/openapi.json",
            f"--header=Authorization: Bearer {secret}",
            "--checks=all",
            f"--max-examples={examples}",
            "--continue-on-failure",
            "--generation-database=none",
            "--no-color",
            *([] if seed is None else [f"--seed={seed}"]),
        ]
        environment = {**os.environ, **_things(api.url, secret, folder), "NO_PROXY": LOOPBACK}
        ended = subprocess.run(command, check=False, env=environment, cwd=folder, capture_output=True, text=True)
        statuses = Counter(_statuses(api.log))
    return Fuzzed(ended.returncode != 0, ended.stdout + ended.stderr, statuses)


@contextmanager
def _serving(settings: Settings, folder: Path) -> Iterator[tuple[Api, str]]:
    """A running API and an administrator's key. Its hub knows no model."""
    engine = make_engine(settings)
    with make_sessions(engine).begin() as session:
        _, secret = issue(session, "default", "fuzz", Scope.ADMIN)
    engine.dispose()
    lock = FolderLock(folder)
    lock.acquire()
    with hub({}) as endpoint:
        api = Api(lock, {**os.environ, **variables(settings), "HF_ENDPOINT": endpoint, "NO_PROXY": LOOPBACK})
        try:
            api.start()
            yield api, secret
        finally:
            api.stop()
            lock.release()


def _things(url: str, secret: str, folder: Path) -> dict[str, str]:
    """What the hooks put in the place of what is generated."""
    (data := folder / "texts.jsonl").write_bytes(RIGHT)
    with Client(url, secret) as client:
        dataset = client.upload_dataset(data)["id"]
        job = client.create_job({"model": "tiny", "dataset": dataset, "sparsity": 0.6})["id"]
    root = str(HERE.parents[1])
    return {"SCHEMATHESIS_HOOKS": "tests.fuzz.hooks", "PYTHONPATH": root, "FUZZ_DATASET": dataset, "FUZZ_JOB": job}


def _statuses(log: Path) -> Iterator[int]:
    for line in log.read_text().splitlines():
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == "request":
            yield entry["status"]
