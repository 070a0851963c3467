"""A private hub model, from the tenant's token to the checkpoint and back to the hub: the token never leaks."""

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
from local.processes import children_of
from seft.client import Client
from seft.client.errors import ApiProblem
from tests.e2e.conftest import Service
from tests.hub import COMMIT, Repo, hub
from tests.hub_uploads import GITATTRIBUTES, Uploads
from tests.waiting import wait_for

TOKEN = "hf_private_to_one_tenant"
MODEL, PUSHED = "acme/private", "acme/private-sparse"
SPEC: dict[str, Any] = {
    "model": MODEL,
    "prune": {"method": "magnitude"},
    "repair": {"method": "none"},
    "evaluate": {"windows": 1, "tokens": 96},
}


@pytest.fixture
def repos(tiny_folder: Path) -> dict[str, Repo]:
    return {MODEL: Repo(tiny_folder, private=True, readers=(TOKEN,))}


@pytest.fixture(autouse=True)
def cache(repos: dict[str, Repo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub that accepts the token, and the hub cache of all processes that are started from now on."""
    path = tmp_path / "cache"
    uploads = Uploads(tmp_path / "repositories", writers=(TOKEN,))
    with hub(repos, {TOKEN: "acme", "hf_theirs": "stranger"}, None, uploads) as endpoint:
        variables = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(path), "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield path


def processes(pid: int) -> Iterator[int]:
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in children_of(pid):
            yield from processes(child)


def visible_bytes(pid: int, scratch: Path) -> bytes:
    """Read the command lines and environments of a worker and its descendants, and the files in its scratch folder.

    Reads at most 1 MiB per file.
    """
    proc = [Path(f"/proc/{each}/{name}") for each in processes(pid) for name in ("cmdline", "environ")]
    contents = []
    for path in [*proc, *scratch.rglob("*")]:
        with suppress(OSError):
            contents.append(path.read_bytes()[: 1 << 20])
    return b"".join(contents)


def tables(service: Service) -> str:
    with service.backend.sessions.begin() as session:
        rows = [session.execute(text(f"SELECT t::text FROM {table} t")).scalars() for table in Base.metadata.tables]
        return "\n".join(row for each in rows for row in each)


def broker_bytes(service: Service) -> bytes:
    """Read everything that the broker stores."""
    with redis.Redis.from_url(str(service.backend.settings.broker_url)) as client:
        return b"".join(client.dump(key) or b"" for key in client.scan_iter())


def test_a_tenants_token_gives_the_worker_its_model_and_leaks_nowhere(
    service: Service, cache: Path, tmp_path: Path, repos: dict[str, Repo]
) -> None:
    service.client.put_hub_token(TOKEN)
    job = service.post(**SPEC, output={"push": {"repository": PUSHED}})
    message = broker_bytes(service)
    assert b"seft" in message
    worker, found = service.start_worker(), set[bytes]()
    scratch, expected = service.backend.settings.scratch, {b"worker.training", f'"revision":"{COMMIT}"'.encode()}
    while not Status(service.backend.job(job).status).final:
        visible = visible_bytes(worker, scratch)
        assert TOKEN.encode() not in visible
        found |= {each for each in expected if each in visible}
        time.sleep(0.2)
    row = service.backend.job(job)
    assert row.status == Status.SUCCEEDED, row.error
    assert found == expected, "the training process was seen, and its job.json was read"

    checkpoint = service.backend.checkpoint(job)
    report = json.loads(service.backend.storage.read(checkpoint.prefix + "sparsity.json"))
    base = report["facts"]["base"]
    assert (base["reference"], base["kind"], base["revision"]) == (MODEL, "hub", COMMIT)
    check_push_equals_download(service, job, repos, tmp_path)
    logs = "".join(path.read_text(errors="replace") for path in [service.workers.log, *tmp_path.rglob("log")])
    assert "attempt.succeeded" in logs
    assert "HTTP Request" not in logs, "links to files are signed"
    for place in (message, logs.encode(), tables(service).encode()):
        assert TOKEN.encode() not in place
    assert not list(cache.glob("*acme*"))
    assert not list(scratch.rglob("*.safetensors"))

    check_other_tenant_is_rejected(service)


def check_push_equals_download(service: Service, job: str, repos: dict[str, Repo], folder: Path) -> None:
    wait_for(lambda: service.client.pushes(job)[0]["finished_at"])
    (push,) = service.client.pushes(job)
    assert (push["status"], push["repository"]) == ("pushed", PUSHED), push
    downloaded = {path.name: path.read_bytes() for path in service.client.download(job, folder / "downloaded")}
    assert {path.name: path.read_bytes() for path in repos[PUSHED].files()} == {
        **downloaded,
        ".gitattributes": GITATTRIBUTES,
    }


def check_other_tenant_is_rejected(service: Service) -> None:
    """The API and the worker both reject the model for another tenant, even after the worker has just used it."""
    with service.backend.sessions.begin() as session:
        _, secret = issue(session, "theirs", "tests", Scope.ADMIN)
    with Client(service.client.url, secret) as stranger:
        stranger.put_hub_token("hf_theirs")
        dataset = stranger.upload_dataset(data(service))["id"]
        body = {**SPEC, "dataset": dataset, "sparsity": 0.6}
        with pytest.raises(ApiProblem) as caught:
            stranger.create_job(body)
        assert (caught.value.code, "PUT /hub-token" in str(caught.value)) == ("model_not_found", True)
        with service.backend.sessions.begin() as session:
            spec = JobSpec.model_validate({**body, "revision": COMMIT})
            smuggled = jobs.create(session, "theirs", spec, None, "").id
        last = list(stranger.watch(smuggled))[-1]
    assert last["status"] == "failed"
    assert last["error"]
    assert (last["error"]["code"], last["error"]["fault"]) == ("model_not_found", "user_error")


def data(service: Service) -> Path:
    path = Path(os.fspath(service.workers.log)).with_name("theirs.jsonl")
    path.write_text('{"text": "%s"}\n{"text": "two"}\n' % ("one " * 1024))
    return path
