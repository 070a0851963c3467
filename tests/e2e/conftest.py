"""The whole service in separate processes: the API, workers with real training, and a client that uses HTTP."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.access.keys import Scope, issue
from core.settings import Settings
from seft.client import Client
from tests.e2e.collector import Collector, collecting
from tests.serving import running_api
from tests.worker.conftest import Backend, Workers, open_backend, variables, workers

__all__ = ["open_backend", "workers"]


@dataclass(frozen=True)
class Service:
    """A running API with its servers, and a client with a key."""

    backend: Backend
    client: Client
    workers: Workers
    dataset: str
    collector: Collector

    def post(self, **spec: Any) -> str:
        body = {"model": "tiny", "dataset": self.dataset, "sparsity": 0.6, "dtype": "float32", **spec}
        return self.client.create_job(body)["id"]

    def start_worker(self) -> int:
        return self.workers.start(self.backend, "worker").pid


@pytest.fixture
def backend(settings: Settings, open_backend: Callable[[Settings], Backend], tiny_folder: Path) -> Backend:
    """Servers and settings with short intervals, and the tiny model under the model root."""
    intervals = {
        "lease_seconds": 6,
        "heartbeat_seconds": 0.5,
        "sweep_seconds": 1,
        "checkpoint_seconds": 0.3,
        "threads": 1,
    }
    return open_backend(settings.model_copy(update={**intervals, "model_roots": [tiny_folder.parent]}))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Receives the spans of all processes that are started after it."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield collector


@pytest.fixture
def service(
    backend: Backend, workers: Workers, tiny_texts: list[str], tmp_path: Path, collector: Collector
) -> Iterator[Service]:
    """A running API with an uploaded dataset. The test starts the workers."""
    with backend.sessions.begin() as session:
        _, secret = issue(session, "default", "tests", Scope.ADMIN)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts[:60]))
    with running_api(tmp_path / "api", variables(backend.settings)) as api, Client(api.url, secret) as client:
        yield Service(backend, client, workers, client.upload_dataset(data)["id"], collector)
