"""A private model of the hub, from the tenant's token to the checkpoint: it is used, and it is seen nowhere."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from core.access.keys import Scope, issue
from core.jobs import jobs
from core.specs import JobSpec
from core.states import Status
from core.tables import Base
from seft.client import Client
from seft.client.errors import ApiProblem
from tests.e2e.conftest import Service
from tests.hub import COMMIT, Repo, hub
from tests.worker.conftest import children_of

TOKEN = "hf_private_to_one_tenant"
MODEL = "acme/private"
SPEC: dict[str, Any] = {
    "model": MODEL,
    "prune": {"method": "magnitude"},
    "repair": {"method": "none"},
    "evaluate": {"windows": 1, "tokens": 96},
}


@pytest.fixture(autouse=True)
def cache(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's cache of all processes that are started from now on, and a hub that knows the token."""
    path = tmp_path / "cache"
    repos = {MODEL: Repo(tiny_folder, private=True, readers=(TOKEN,))}
    with hub(repos, {TOKEN: "acme", "hf_theirs": "stranger"}) as endpoint:
        variables = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(path), "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield path


def processes(pid: int) -> Iterator[int]:
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in children_of(pid):
            yield from processes(child)


def around(pid: int, scratch: Path) -> bytes:
    """Command lines and environments of a worker and all that it started, and every small file of its jobs."""
    shown = [Path(f"/proc/{each}/{name}") for each in processes(pid) for name in ("cmdline", "environ")]
    found = []
    for path in [*shown, *scratch.rglob("*")]:
        with suppress(OSError):
            found.append(path.read_bytes()[: 1 << 20])
    return b"".join(found)


def tables(service: Service) -> str:
    with service.backend.sessions.begin() as session:
        rows = [session.execute(text(f"SELECT t::text FROM {table} t")).scalars() for table in Base.metadata.tables]
        return "\n".join(row for each in rows for row in each)


def queued(service: Service) -> bytes:
    """All that the broker holds."""
    with redis.Redis.from_url(str(service.backend.settings.broker_url)) as client:
        return b"".join(client.dump(key) or b"" for key in client.scan_iter())


def test_a_token_opens_its_tenants_model_to_the_worker_and_stands_nowhere(
    service: Service, cache: Path, tmp_path: Path
) -> None:
    service.client.give_hub_token(TOKEN)
    job = service.post(**SPEC)
    message = queued(service)
    assert b"seft" in message
    worker, seen = service.start_worker(), b""
    scratch = service.backend.settings.scratch
    deadline = time.monotonic() + 200
    while not Status(service.backend.job(job).status).final and time.monotonic() < deadline:
        seen += around(worker, scratch)
        time.sleep(0.2)
    row = service.backend.job(job)
    assert row.status == Status.SUCCEEDED, row.error
    assert b"worker.child" in seen
    assert f'"revision":"{COMMIT}"'.encode() in seen, "its job.json was looked at"

    checkpoint = service.backend.checkpoint(job)
    said = json.loads(service.backend.storage.read(checkpoint.prefix + "sparsity.json"))
    base = said["facts"]["base"]
    assert (base["reference"], base["kind"], base["revision"]) == (MODEL, "hub", COMMIT)
    logs = "".join(path.read_text(errors="replace") for path in [service.workers.log, *tmp_path.rglob("log")])
    assert "attempt.succeeded" in logs
    assert "HTTP Request" not in logs, "links to files are signed"
    for place in (message, seen, logs.encode(), tables(service).encode()):
        assert TOKEN.encode() not in place
    assert not list(cache.glob("*acme*"))
    assert not list(scratch.rglob("*.safetensors"))

    refused_to_a_stranger(service)


def refused_to_a_stranger(service: Service) -> None:
    """At the door, and at the worker that has just had the model in hand."""
    with service.backend.sessions.begin() as session:
        _, secret = issue(session, "theirs", "tests", Scope.ADMIN)
    with Client(service.client.url, secret) as stranger:
        stranger.give_hub_token("hf_theirs")
        dataset = stranger.upload_dataset(data(service))["id"]
        asked = {**SPEC, "dataset": dataset, "sparsity": 0.6}
        with pytest.raises(ApiProblem) as caught:
            stranger.create_job(asked)
        assert (caught.value.code, "PUT /hub-token" in str(caught.value)) == ("model_not_found", True)
        with service.backend.sessions.begin() as session:
            spec = JobSpec.model_validate({**asked, "revision": COMMIT})
            smuggled = jobs.create(session, "theirs", spec, None, "")[0].id
        last = list(stranger.watch(smuggled))[-1]
    assert last["status"] == "failed"
    assert last["error"]
    assert (last["error"]["code"], last["error"]["fault"]) == ("model_not_found", "user_error")


def data(service: Service) -> Path:
    path = Path(os.fspath(service.workers.log)).with_name("theirs.jsonl")
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    return path
