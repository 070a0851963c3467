"""The worker and a private hub model, which needs the tenant's token."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from pydantic import SecretStr

from core.access import hub_tokens
from core.access.encryption import Encryption
from core.estimate.speed import Speed
from core.jobs import actions
from core.states import Reason, Status
from seft.models.source import fetch_into, find_on_hub
from tests.hollow import write_hollow
from tests.hub import COMMIT, Repo, hub, use_hub
from tests.waiting import wait_for
from tests.worker.conftest import TENANT, Backend, Running
from worker.attempt import Supervisor
from worker.files import Files
from worker.protocol import MODELS, Task
from worker.transfers import TransferError, Transfers

TOKEN = "hf_ours"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(write_hollow(tmp_path / "repo"), private=True, readers=(TOKEN,))


@pytest.fixture(autouse=True)
def cache(
    repo: Repo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    away: threading.Event,
    seen: list[tuple[str, str | None]],
) -> Iterator[Path]:
    repos = {"acme/private": repo, "acme/open": Repo(repo.folder)}
    with hub(repos, {TOKEN: "acme"}, seen, away=away) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield tmp_path / "cache"


def add_job(backend: Backend, model: str) -> str:
    with backend.sessions.begin() as session:
        hub_tokens.put(session, TENANT, Encryption(backend.settings).encrypt(TOKEN, TENANT), "acme")
    return backend.add_job(backend.add_dataset(["one " * 1024, "two"]), model=model, revision=COMMIT)


def supervisor(backend: Backend) -> Supervisor:
    training = (sys.executable, "-m", "tests.worker.stand_in", "succeed")
    attempt = backend.claim()
    assert TOKEN not in repr(attempt)
    return Supervisor(
        attempt, backend.sessions, backend.storage, backend.settings, draining=threading.Event(), training=training
    )


def test_the_model_is_in_the_jobs_folder_and_not_in_the_cache(backend: Backend, cache: Path) -> None:
    add_job(backend, "acme/private")
    files = Files(backend.claim(), backend.settings, Transfers(backend.storage, lambda _: None))
    files.fetch(Speed())
    folder = files.folder / MODELS / COMMIT
    assert Task.read(files.folder).downloaded == folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not list(cache.glob("models--*"))


def test_other_users_of_the_machine_cannot_open_the_folder_of_a_job(backend: Backend, tmp_path: Path) -> None:
    add_job(backend, "acme/open")
    scratch = tmp_path / "new" / "scratch"
    settings = backend.settings.model_copy(update={"scratch": scratch})
    files = Files(backend.claim(), settings, Transfers(backend.storage, lambda _: None))
    before = os.umask(0o022)
    try:
        files.fetch(Speed())
    finally:
        os.umask(before)
    assert [folder.stat().st_mode & 0o777 for folder in (files.folder, files.folder.parent)] == [0o700, 0o700]


def test_the_training_process_downloads_a_model_that_needs_no_token(backend: Backend) -> None:
    add_job(backend, "acme/open")
    files = Files(backend.claim(), backend.settings, Transfers(backend.storage, lambda _: None))
    files.fetch(Speed())
    assert Task.read(files.folder).downloaded is None
    assert not (files.folder / MODELS).exists()


def test_a_missing_model_is_a_user_error(backend: Backend, repo: Repo, capfd: pytest.CaptureFixture[str]) -> None:
    job = add_job(backend, "acme/private")
    repo.readers = ()
    assert supervisor(backend).run()
    row = backend.job(job)
    assert row.error
    assert (row.status, row.error["code"], row.error["fault"]) == ("failed", "model_not_found", "user_error")
    assert TOKEN not in "".join(capfd.readouterr())


def test_an_unreachable_hub_pauses_the_job_until_it_answers(
    backend: Backend, away: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job(backend, "acme/private")
    away.set()
    monkeypatch.setattr("worker.retries.RETRY_SECONDS", 0.0)
    assert not supervisor(backend).run()
    backend.sweep().resume_paused()
    row = backend.job(job)
    assert row.reason
    assert (row.status, row.failures, row.reason["code"]) == (Status.PAUSED, 0, Reason.HUB_UNREACHABLE)
    assert "cannot reach the model hub" in row.reason["message"]
    away.clear()
    backend.sweep().resume_paused()
    assert backend.job(job).status == Status.QUEUED
    assert supervisor(backend).run()
    assert backend.job(job).status == Status.SUCCEEDED


def test_a_short_outage_of_the_hub_fails_no_attempt(
    backend: Backend, away: threading.Event, seen: list[tuple[str, str | None]]
) -> None:
    job = add_job(backend, "acme/private")
    away.set()
    with Running(supervisor(backend)):
        wait_for(lambda: seen)
        away.clear()
        wait_for(lambda: backend.job(job).status == Status.SUCCEEDED)
    assert (backend.job(job).attempt, backend.job(job).failures) == (1, 0)


def test_a_download_that_is_interrupted_after_each_file_ends(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    job, cut, download = add_job(backend, "acme/private"), set[str](), HfApi.hf_hub_download

    def interrupted(api: HfApi, repo_id: str, name: str, **options: Any) -> str:
        path = download(api, repo_id, name, **options)
        if name not in cut:
            cut.add(name)
            raise ConnectionError("the connection was cut")
        return str(path)

    monkeypatch.setattr(HfApi, "hf_hub_download", interrupted)
    for name in ("RETRY_SECONDS", "LONG_TRY_SECONDS", "FIRST_PAUSE", "MOST_LONG_TRIES"):
        monkeypatch.setattr(f"worker.retries.{name}", 0.0)
    assert supervisor(backend).run()
    assert len(cut) > 2
    assert (backend.job(job).status, backend.job(job).attempt) == (Status.SUCCEEDED, 1)


def test_an_attempt_that_ends_does_not_wait_for_the_hub(
    backend: Backend, away: threading.Event, seen: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.retries.FIRST_PAUSE", 600.0)
    job = add_job(backend, "acme/private")
    away.set()
    with Running(supervisor(backend)) as running:
        wait_for(lambda: seen)
        backend.request(actions.cancel, job)
    assert backend.job(job).status == Status.CANCELLED
    assert not running.transfers._thread.is_alive()


def test_a_worker_with_another_secret_key_fails_with_a_system_error(
    backend: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    job = add_job(backend, "acme/private")
    other = Backend(
        backend.settings.model_copy(update={"secret_key": SecretStr("x" * 32)}), backend.sessions, backend.storage
    )
    assert not supervisor(other).run()
    assert (backend.job(job).status, backend.job(job).failures) == (Status.QUEUED, 1)
    assert "SEFT_SECRET_KEY" in str([event.data for event in backend.event_rows(job)])
    assert TOKEN not in "".join(capfd.readouterr())
    assert supervisor(backend).run()
    assert backend.job(job).status == Status.SUCCEEDED


def test_a_download_stops_when_its_attempt_has_ended(backend: Backend, tmp_path: Path) -> None:
    source = find_on_hub("acme/private", None, token=lambda: TOKEN)
    assert TOKEN not in repr(source)
    transfers = Transfers(backend.storage, lambda _: None)
    transfers.close(lambda: None, 10)
    with pytest.raises(TransferError, match="ended"):
        fetch_into(tmp_path / "into", source, heartbeat=transfers.check)
    assert not (tmp_path / "into").exists()
