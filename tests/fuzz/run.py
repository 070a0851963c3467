"""One fuzz run: start an API process with a dataset, a model and a job, and call all its operations by schemathesis."""

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
from core.infra.database import one_session
from core.settings import Settings
from local.folder import LOOPBACK
from local.stack import Api
from seft.client import Client
from tests.hollow import TEXTS, write_hollow
from tests.hub import hub
from tests.serving import running_api
from tests.worker.conftest import variables

HERE = Path(__file__).parent


@dataclass(frozen=True)
class FuzzResult:
    """The result of a run."""

    broken: bool
    """Whether an answer violated the OpenAPI document."""
    output: str
    statuses: Counter[int]
    """Number of answers per HTTP status, from the API's log."""


def fuzz(settings: Settings, folder: Path, *, examples: int, seed: int | None = None) -> FuzzResult:
    """Call every operation with up to `examples` generated requests per phase, valid and invalid ones."""
    model = write_hollow(folder / "models" / "tiny")
    ours = settings.model_copy(
        update={"model_roots": [model.parent], "rate_limit": 0.0, "tenant_waiting": 0, "log_format": "json"}
    )
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
        environment = {**os.environ, **_create_objects(api.url, secret, folder), "NO_PROXY": LOOPBACK}
        process = subprocess.run(command, check=False, env=environment, cwd=folder, capture_output=True, text=True)
        statuses = Counter(_statuses(api.log))
    return FuzzResult(process.returncode != 0, process.stdout + process.stderr, statuses)


@contextmanager
def _serving(settings: Settings, folder: Path) -> Iterator[tuple[Api, str]]:
    """Start an API, and yield it with an administrator's key. Its hub has no models."""
    with one_session(settings) as session:
        _, secret = issue(session, "default", "fuzz", Scope.ADMIN)
    with hub({}) as endpoint:
        hub_variables = {"HF_ENDPOINT": endpoint, "NO_PROXY": LOOPBACK}
        with running_api(folder, {**variables(settings), **hub_variables}) as api:
            yield api, secret


def _create_objects(url: str, secret: str, folder: Path) -> dict[str, str]:
    """Create a dataset and a job. Return the environment variables that tell the hooks about them."""
    (data := folder / "texts.jsonl").write_bytes(TEXTS)
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
