"""Pushes of a result into a repository of the hub: equal to the result, once, whatever fails or is killed."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from botocore.exceptions import EndpointConnectionError
from huggingface_hub import constants
from pydantic import SecretStr
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError

from core import webhooks
from core.access import hub_tokens
from core.access.encryption import Encryption
from core.infra import storage
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.jobs import actions, attempts, jobs, pushes, retention
from core.settings import Settings
from core.spec_parts import PushSpec
from core.tables import Checkpoint, Push, WebhookDelivery
from tests.hollow import write_hollow
from tests.hub import Repo, hub, use_hub
from tests.hub_uploads import Uploads
from tests.waiting import wait_for
from tests.worker.conftest import TENANT, Backend
from worker.pusher import Pusher

TOKEN, READER = "hf_writes", "hf_reads"
NAME = "acme/sparse"
KEY = SecretStr("k" * 32)


@dataclass
class Hub:
    """A hub that takes pushes, and the names of the files that it has at `revision`."""

    endpoint: str
    uploads: Uploads
    repos: dict[str, Repo] = field(default_factory=dict)

    def contents(self, repository: str = NAME) -> dict[str, bytes]:
        files = self.repos[repository].files()
        return {path.name: path.read_bytes() for path in files if path.name != ".gitattributes"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repos: dict[str, Repo] = {}
    uploads = Uploads(tmp_path / "repositories", writers=(TOKEN,))
    with hub(repos, {TOKEN: "acme", READER: "reader"}, None, uploads) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield Hub(endpoint, uploads, repos)


@pytest.fixture
def backend(settings: Settings, open_backend: Callable[[Settings], Backend]) -> Backend:
    """A service whose tenant has a hub token that may write."""
    opened = open_backend(settings.model_copy(update={"secret_key": KEY}))
    give(opened, TOKEN)
    return opened


def give(backend: Backend, token: str) -> None:
    with backend.sessions.begin() as session:
        hub_tokens.put(session, TENANT, Encryption(backend.settings).encrypt(token, TENANT), "acme")


@pytest.fixture
def publish(backend: Backend, tmp_path: Path) -> Callable[..., str]:
    """Return a function that publishes the result of a job, in one or two files of weights, and returns its id."""

    def run(shards: int = 2, **target: Any) -> str:
        dataset = backend.add_dataset(["a" * 4096])
        job_id = backend.add_job(dataset, output={"push": target})
        folder = write_hollow(tmp_path / job_id)
        (folder / "README.md").write_text(f"---\nlicense: mit\n---\nThe result of {job_id}\n")
        if shards > 1:
            weights = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").unlink()
            (folder / "model-00001-of-00002.safetensors").write_bytes(weights)
            (folder / "model-00002-of-00002.safetensors").write_bytes(weights + b" ")
            (folder / "model.safetensors.index.json").write_text("{}")
        attempt, prefix = backend.claim(), f"jobs/{job_id}/1/result/"
        files = []
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            backend.storage.put(prefix + path.name, content)
            files.append({"name": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        with backend.sessions.begin() as session:
            attempts.publish(
                session, attempt, step=1, prefix=prefix, sha256="0", files=files, scores={}, measured={}, days=1
            )
        return job_id

    return run


def push(backend: Backend, job_id: str, repository: str = NAME, **target: Any) -> None:
    """Request a push, and do it."""
    with backend.sessions.begin() as session:
        job = jobs.get(session, TENANT, job_id)
        pushes.request(session, job, PushSpec(repository=repository, **target))
    assert poll(backend) == 1


def poll(backend: Backend) -> int:
    return pusher(backend).poll()


def pusher(backend: Backend) -> Pusher:
    return Pusher(backend.settings, backend.sessions, backend.storage, threading.Event())


def row(backend: Backend, job_id: str) -> Push:
    with backend.sessions.begin() as session:
        (found,) = pushes.list_all(session, job_id)
        return found


def let_time_pass(backend: Backend) -> None:
    """Make every unfinished push due: its lease has ended, or the pause before its next try."""
    with backend.sessions.begin() as session:
        session.execute(update(Push).where(Push.due_at.is_not(None)).values(due_at=func.now() - timedelta(seconds=1)))


def result(backend: Backend, job_id: str) -> dict[str, bytes]:
    checkpoint = backend.checkpoint(job_id)
    return {file["name"]: backend.storage.read(checkpoint.prefix + file["name"]) for file in checkpoint.files}


def test_a_push_equals_the_result_and_replaces_the_model_of_an_earlier_one(
    backend: Backend, world: Hub, publish: Callable[..., str], tmp_path: Path
) -> None:
    world.uploads.part_bytes = 100_000
    first = publish(shards=2, repository=NAME)
    assert row(backend, first).state == "pending", "a job has succeeded before its result is pushed"
    assert (poll(backend), poll(backend)) == (1, 0)
    done = row(backend, first)
    assert (done.state, done.tries, done.error) == ("pushed", 1, None)
    assert done.commit_url == f"{world.endpoint}/{NAME}/commit/{world.repos[NAME].head}"
    assert world.repos[NAME].private
    assert world.contents() == result(backend, first)
    assert backend.events(first)[-1] == "job.pushed"
    for name, content in result(backend, first).items():  # as a user downloads it
        path = huggingface_hub.hf_hub_download(NAME, name, token=TOKEN, local_dir=tmp_path / "downloaded")
        assert Path(path).read_bytes() == content

    (world.repos[NAME].folder / "notes.txt").write_text("kept")
    (world.repos[NAME].folder / ".gitignore").write_text("model.safetensors")
    second = publish(shards=1)
    push(backend, second)
    rest = {".gitignore": b"model.safetensors", "notes.txt": b"kept"}
    assert world.contents() == result(backend, second) | rest, "no weights of the first model are left"
    push(backend, second, private=False, revision="v2")
    assert world.contents(f"{NAME}@v2") == world.contents()
    push(backend, first)
    assert world.contents() == result(backend, first) | rest
    assert len(world.uploads.commits) == 3, "the branch had all files already"


def child(settings: Settings) -> None:
    """Push in a process of its own."""
    sessions = make_sessions(make_engine(settings))
    Pusher(settings, sessions, Storage(settings), threading.Event()).poll()


@pytest.mark.parametrize("moment", ["/lfs/", "/commit/"])
def test_a_worker_that_is_killed_pushes_once(
    backend: Backend, world: Hub, publish: Callable[..., str], moment: str
) -> None:
    """It is killed when the hub has its first file, or when the hub has its commit and it does not know that."""
    job_id = publish(repository=NAME)
    process = multiprocessing.get_context("spawn").Process(target=child, args=(backend.settings,))

    def kill(_: str, path: str) -> None:
        if moment in path and process.pid is not None:
            world.uploads.after = lambda method, path: None
            os.kill(process.pid, signal.SIGKILL)

    world.uploads.after = kill
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (row(backend, job_id).state, poll(backend)) == ("running", 0), "the lease of the dead worker has not ended"
    let_time_pass(backend)
    assert poll(backend) == 1
    assert (row(backend, job_id).state, row(backend, job_id).tries) == ("pushed", 2)
    assert world.contents() == result(backend, job_id)
    assert len(world.uploads.commits) == 1
    assert set(world.uploads.received.values()) == {1}, "no file is uploaded again"


def test_the_lease_is_renewed_while_the_hub_is_slow(
    backend: Backend, world: Hub, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushes, "LEASE", timedelta(seconds=0.04))
    job_id = publish(repository=NAME)

    def wait(_: str, path: str) -> None:
        if path.startswith("/lfs/"):
            first = row(backend, job_id).due_at
            wait_for(lambda: row(backend, job_id).due_at != first)

    world.uploads.before = wait
    assert (poll(backend), row(backend, job_id).state) == (1, "pushed")


@pytest.mark.parametrize("deleted", [False, True])
def test_a_worker_that_has_lost_its_push_sends_no_further_file(
    backend: Backend, world: Hub, publish: Callable[..., str], deleted: bool
) -> None:
    """Its lease has ended and another worker has claimed the push, or the job was deleted."""
    job_id = publish(repository=NAME)

    def take_over(method: str, path: str) -> int | None:
        if path.startswith("/lfs/"):
            world.uploads.before = lambda method, path: None
            let_time_pass(backend)
            with backend.sessions.begin() as session:
                if deleted:
                    actions.delete(session, TENANT, job_id)
                else:
                    assert pushes.claim(session) is not None
        return None

    world.uploads.before = take_over
    assert poll(backend) == 1
    assert (world.uploads.commits, world.uploads.received.total()) == ([], 1)
    with backend.sessions.begin() as session:
        left = [(push.state, push.tries) for push in pushes.list_all(session, job_id)]
    assert left == ([] if deleted else [("running", 2)])


def test_a_hub_that_is_down_is_tried_again_and_the_result_stays(
    backend: Backend, world: Hub, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = publish(repository=NAME)
    world.uploads.before = lambda method, path: 503 if path.endswith("/repos/create") else None
    assert (poll(backend), poll(backend)) == (1, 0)
    waiting = row(backend, job_id)
    assert waiting.error
    assert (waiting.state, waiting.error["code"], waiting.due_at is not None) == ("pending", "hub_unreachable", True)
    with backend.sessions.begin() as session:
        session.execute(update(Checkpoint).values(expires_at=func.now() - timedelta(days=1)))
        assert retention.expire_checkpoints(session) == [], "the result is kept until it is pushed"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    let_time_pass(backend)
    assert poll(backend) == 1
    assert row(backend, job_id).state == "pending"
    monkeypatch.setattr(constants, "ENDPOINT", world.endpoint)
    world.uploads.before = lambda method, path: 412 if "/commit/" in path else None  # another commit came first
    let_time_pass(backend)
    assert poll(backend) == 1
    assert row(backend, job_id).state == "pending"
    world.uploads.before = lambda method, path: None
    let_time_pass(backend)
    assert poll(backend) == 1
    assert (row(backend, job_id).state, row(backend, job_id).error) == ("pushed", None)
    assert world.contents() == result(backend, job_id)
    with backend.sessions.begin() as session:
        assert len(retention.expire_checkpoints(session)) == 1
        assert session.scalar(select(func.count(Push.id))) == 1


def test_a_push_that_always_fails_ends_as_failed(backend: Backend, world: Hub, publish: Callable[..., str]) -> None:
    job_id = publish(repository=NAME)
    world.uploads.before = lambda method, path: 503
    again = f"Push again with POST /jobs/{job_id}/push."
    for number in range(1, pushes.MAX_TRIES + 1):
        let_time_pass(backend)
        assert poll(backend) == 1
        assert (again in str(row(backend, job_id).error)) == (number == pushes.MAX_TRIES)
    assert (row(backend, job_id).state, row(backend, job_id).due_at) == ("failed", None)
    assert backend.job(job_id).status == "succeeded"


def test_a_token_that_is_refused_fails_with_the_way_out_and_leaks_nowhere(
    backend: Backend, world: Hub, publish: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    with backend.sessions.begin() as session:
        webhooks.create(session, TENANT, "http://127.0.0.1:9/", [])
    job_id = publish(repository=NAME)
    give(backend, READER)
    assert poll(backend) == 1
    refused = row(backend, job_id)
    assert refused.error
    assert (refused.state, refused.error["code"]) == ("failed", "hub_refused")
    store = "PUT /hub-token (`seft hub-token set`, or the page Keys in the dashboard)"
    assert f"{store}, and push again with POST /jobs/{job_id}/push" in refused.error["message"]
    assert (backend.job(job_id).status, result(backend, job_id) != {}) == ("succeeded", True)
    assert backend.event_rows(job_id)[-1].data["error"] == refused.error
    with backend.sessions.begin() as session:
        bodies = list(session.scalars(select(WebhookDelivery.body)))
        hub_tokens.remove(session, TENANT)
    push(backend, job_id)
    gone = row(backend, job_id)
    assert gone.error
    assert (gone.state, gone.error["code"]) == ("failed", "no_hub_token")
    assert "job.push_failed" in "".join(bodies)
    for text in (*bodies, str(refused.error), *capfd.readouterr()):
        assert READER not in text
    give(backend, TOKEN)
    push(backend, job_id)
    assert row(backend, job_id).state == "pushed"


def test_a_worker_that_shuts_down_claims_no_push_and_an_interrupted_last_try_ends_it(
    backend: Backend, world: Hub, publish: Callable[..., str]
) -> None:
    job_id, ending = publish(repository=NAME), pusher(backend)
    ending.draining.set()
    assert (ending.poll(), row(backend, job_id).state) == (0, "pending")
    with backend.sessions.begin() as session:
        session.execute(update(Push).values(tries=pushes.MAX_TRIES, state="running"))
    let_time_pass(backend)
    assert poll(backend) == 1
    failed = row(backend, job_id)
    assert failed.error
    assert (failed.state, failed.error["code"]) == ("failed", "interrupted")
    assert failed.error["message"].endswith(f"Push again with POST /jobs/{job_id}/push.")
    assert world.uploads.commits == []


def test_a_damaged_result_is_not_committed(backend: Backend, world: Hub, publish: Callable[..., str]) -> None:
    job_id = publish(shards=1, repository=NAME)
    backend.storage.put(f"jobs/{job_id}/1/result/model.safetensors", b"damaged")
    assert poll(backend) == 1
    damaged = row(backend, job_id)
    assert damaged.error
    assert (damaged.state, damaged.error["code"], world.uploads.commits) == ("failed", "checkpoint_damaged", [])


def test_an_error_while_a_file_is_sent_is_known_by_its_cause_and_shows_no_machine(
    backend: Backend, world: Hub, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "READ_BYTES", 1 << 16)  # sending reads the storage again
    job_id = publish(shards=1, repository=NAME)
    key = f"jobs/{job_id}/1/result/model.safetensors"
    content = backend.storage.read(key)

    def fail(how: Callable[[], object], code: int | None = None) -> str:
        def before(_: str, path: str) -> int | None:
            if path.endswith("/lfs/objects/batch"):
                how()
            return code if path.startswith("/lfs/") else None

        world.uploads.before = before
        let_time_pass(backend)
        assert poll(backend) == 1
        failed = row(backend, job_id)
        assert failed.error
        assert "internal" not in failed.error["message"], failed.error
        return f"{failed.state}: {failed.error['code']}"

    def unreachable(*_: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://minio.internal:9000/")

    def database_down(*_: object) -> bool:
        raise OperationalError("UPDATE pushes", {}, Exception("db.internal refused"))

    assert fail(lambda: None, code=403) == "pending: hub_unreachable", "a signed link may have expired"
    with monkeypatch.context() as patched:
        broken = fail(lambda: patched.setattr(storage._Object, "readinto", unreachable))
    assert broken == "pending: storage_unreachable"
    assert fail(lambda: backend.storage.delete([key])) == "failed: checkpoint_deleted"
    backend.storage.put(key, content)
    world.uploads.before = lambda method, path: None
    with monkeypatch.context() as patched:
        patched.setattr(Pusher, "_renew", database_down)
        with pytest.raises(OperationalError):
            push(backend, job_id)
    assert row(backend, job_id).error is None
    let_time_pass(backend)
    assert (poll(backend), row(backend, job_id).state) == (1, "pushed")
