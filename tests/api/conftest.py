"""A server with one API key and one valid model, and helpers for requests to it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from fastapi import FastAPI
from httpx2 import Client
from sqlalchemy import func, update
from sqlalchemy.orm import Session, sessionmaker
from starlette.testclient import TestClient

from api.app import make_app
from api.protocol import HeadTimeoutProtocol
from core.access import keys
from core.access.keys import Scope
from core.infra.bucket_backup import OWNER
from core.jobs import attempts
from core.jobs.attempts import Attempt
from core.settings import Settings
from core.tables import Import
from tests import claims
from tests.hollow import TEXTS, write_hollow
from tests.hub import hub, use_hub
from tests.serving import serving_app

NewClient = Callable[..., TestClient]
Json = dict[str, Any]
SHA256 = "ab" * 32


@pytest.fixture
def app(settings: Settings, tmp_path: Path) -> Iterator[FastAPI]:
    folder = write_hollow(tmp_path / "models" / "tiny")
    made = make_app(settings.model_copy(update={"model_roots": [folder.parent]}))
    yield made
    made.state.services.engine.dispose()  # a test may connect without starting or after ending the application


@pytest.fixture
def sessions(app: FastAPI) -> sessionmaker[Session]:
    factory: sessionmaker[Session] = app.state.services.sessions
    return factory


@pytest.fixture
def new_client(app: FastAPI, sessions: sessionmaker[Session]) -> Iterator[NewClient]:
    """Return a function that makes clients of tenants, each with its own key."""
    with TestClient(app, raise_server_exceptions=False) as outer:

        def make(tenant: str, scope: Scope = Scope.ADMIN) -> TestClient:
            with sessions.begin() as session:
                _, secret = keys.issue(session, tenant, "test", scope)
            client = TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {secret}"})
            client.portal = outer.portal
            return client

        yield make


@pytest.fixture
def known_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub without repositories that accepts the token of the OpenAPI example."""
    with hub({}, {"hf_example": "acme"}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield


@pytest.fixture
def client(new_client: NewClient) -> TestClient:
    return new_client("ours")


@pytest.fixture
def dataset(client: TestClient) -> str:
    answer = client.post("/datasets", files={"file": ("texts.jsonl", TEXTS)})
    assert answer.status_code == 201, answer.text
    dataset_id: str = answer.json()["id"]
    return dataset_id


@pytest.fixture
def other_dataset(client: TestClient) -> str:
    """A dataset that is large enough to be retained."""
    record = b'{"text": "%s"}\n'
    content = record % (b"c" * 1024) + record % b"b"
    dataset_id: str = client.post("/datasets", files={"file": ("other.jsonl", content)}).json()["id"]
    return dataset_id


@pytest.fixture
def body(dataset: str) -> Json:
    return {"model": "tiny", "dataset": dataset, "sparsity": 0.6}


@pytest.fixture
def job_id(client: TestClient, body: Json) -> str:
    created_id: str = client.post("/jobs", json=body).json()["id"]
    return created_id


@pytest.fixture
def attempt(job_id: str, sessions: sessionmaker[Session]) -> Attempt:
    with sessions.begin() as session:
        claimed = claims.claim(session, "gpu-1", 60)
    assert claimed is not None
    return claimed


@pytest.fixture
def root(app: FastAPI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The model root. The hub cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (folder,) = app.state.services.settings.model_roots
    return Path(folder)


@pytest.fixture
def result(attempt: Attempt, app: FastAPI, sessions: sessionmaker[Session], tmp_path: Path) -> str:
    """Id of a job that has published a model (headers only), a model card, and the zeros of a linear."""
    folder, prefix = write_hollow(tmp_path / "published"), f"jobs/{attempt.job_id}/1/result/"
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    layers = {"model.layers.0.mlp.up_proj": {"zeros": 6, "weights": 10}}
    (folder / "sparsity.json").write_text(json.dumps({"sparsity": {"layers": layers}}))
    files = [{"name": path.name, "size": path.stat().st_size, "sha256": SHA256} for path in folder.iterdir()]
    for file in files:
        app.state.services.storage.upload(folder / str(file["name"]), f"{prefix}{file['name']}")
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix=prefix, sha256=SHA256, files=files, scores={}, measured={})
    return attempt.job_id


@contextmanager
def serving(app: FastAPI, client: TestClient) -> Iterator[Client]:
    """Run a real server, for tests that need connections, and yield a client with the same key."""
    with (
        serving_app(app, http=HeadTimeoutProtocol, lifespan="off", timeout_graceful_shutdown=1) as url,
        Client(base_url=url, headers=dict(client.headers), timeout=20) as connected,
    ):
        yield connected


@pytest.fixture
def live(app: FastAPI, client: TestClient) -> Iterator[Client]:
    """A client of a real server, for tests that need connections."""
    with serving(app, client) as connected:
        yield connected


def problem(answer: Any, status: int, code: str) -> Json:
    """Check what is true of every problem report, and return this one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    report: Json = answer.json()
    assert (report["status"], report["code"], report["type"]) == (status, code, f"urn:seft:problem:{code}")
    assert report["request_id"] == answer.headers["x-request-id"]
    assert report["title"]
    assert report["detail"]
    assert report["param"] == (report["errors"][0]["param"] if report["errors"] else None)
    assert all(error["rule"] and error["value"] and error["way_out"] for error in report["errors"])
    return report


def stored(app: FastAPI) -> list[str]:
    """Return the keys of all objects in the storage, except for the id of the service."""
    return [key for key in app.state.services.storage.keys("") if key != OWNER]


def finish(sessions: sessionmaker[Session], attempt: Attempt) -> None:
    """Publish an empty result of the attempt."""
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})


def let_leases_end(sessions: sessionmaker[Session]) -> None:
    """Let the leases of all imports end now."""
    with sessions.begin() as session:
        leased = update(Import).where(Import.due_at.is_not(None))
        session.execute(leased.values(due_at=func.now() - timedelta(seconds=1)))
