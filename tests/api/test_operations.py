"""Health checks, with and without the servers behind the service."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

import core
from api.app import make_app
from core.settings import Settings
from tests.api.conftest import problem

NOWHERE = {
    "database": {"database_url": "postgresql://u:p@127.0.0.1:9/x"},
    "storage": {"s3_endpoint": "http://127.0.0.1:9"},
    "broker": {"broker_url": "redis://127.0.0.1:9/0"},
}


@contextmanager
def without(server: str, settings: Settings) -> Iterator[TestClient]:
    """Yield a client of a service that cannot reach one of its servers."""
    app = make_app(Settings.model_validate(settings.model_dump() | NOWHERE[server]))
    try:
        yield TestClient(app)
    finally:
        app.state.services.engine.dispose()


def test_a_service_with_all_servers_is_ready(client: TestClient) -> None:
    checks = {"database": "ok", "storage": "ok", "broker": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "checks": checks}
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/version").json() == {"version": core.__version__}


def test_without_the_broker_the_service_is_degraded(settings: Settings, client: TestClient) -> None:
    with without("broker", settings) as degraded:
        answer = degraded.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["checks"]["database"] == "ok"
    assert answer.json()["checks"]["broker"] != "ok"


def test_without_a_server_that_it_needs_it_is_not_ready_and_says_which(settings: Settings, client: TestClient) -> None:
    for server in ("database", "storage"):
        with without(server, settings) as lost:
            report = problem(lost.get("/readyz"), 503, "unavailable")
        assert [flaw["param"] for flaw in report["errors"]] == [server]
        assert "127.0.0.1" not in str(report)


def test_without_its_database_it_is_alive_and_returns_unavailable(settings: Settings) -> None:
    with without("database", settings) as lost:
        assert lost.get("/livez").status_code == 200
        answer = lost.get("/jobs", headers={"Authorization": "Bearer seft_x"})
    problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"]


def test_without_its_storage_an_upload_returns_unavailable(settings: Settings, client: TestClient) -> None:
    content = b'{"text": "a"}\n{"text": "b"}\n'
    key = {"Authorization": client.headers["Authorization"]}
    with without("storage", settings) as lost:
        answer = lost.post("/datasets", files={"file": ("x", content)}, headers=key)
    problem(answer, 503, "unavailable")


def test_a_key_made_from_the_shell_opens_the_api(app: FastAPI, client: TestClient, settings: Settings) -> None:
    environment = {f"SEFT_{name.upper()}": _plain(value) for name, value in settings.model_dump().items() if value}
    process = subprocess.run(
        [sys.executable, "-m", "api", "keys", "create", "--tenant", "ours", "--name", "x"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    secret = process.stdout.strip()
    assert TestClient(app).get("/jobs", headers={"Authorization": f"Bearer {secret}"}).status_code == 200


def test_the_server_needs_no_torch() -> None:
    modules = "api.__main__, api.process, core.jobs.recovery, core.jobs.attempts"
    code = f"from api.app import routes; routes().openapi(); import {modules}"
    import_times = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], check=True, capture_output=True, text=True
    ).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in import_times.splitlines()}
    assert "fastapi" in loaded
    assert not loaded & {"torch", "transformers", "safetensors", "accelerate", "tokenizers", "numpy"}


def _plain(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
