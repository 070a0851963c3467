"""A model that only the tenant's hub token opens, in the hands of the worker."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from core.access import hub_tokens
from core.access.encryption import Encryption
from core.states import Status
from seft.models.source import fetch_into, find_on_hub
from tests.hollow import write_hollow
from tests.hub import COMMIT, Repo, hub, use_hub
from tests.worker.conftest import TENANT, House
from worker.attempt import Supervisor
from worker.files import Files
from worker.protocol import MODELS, Task
from worker.transfers import TransferError, Transfers

TOKEN = "hf_ours"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(write_hollow(tmp_path / "repo"), private=True, readers=(TOKEN,))


@pytest.fixture(autouse=True)
def cache(repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with hub({"acme/private": repo, "acme/open": Repo(repo.folder)}, {TOKEN: "acme"}) as endpoint:
        use_hub(monkeypatch, endpoint, tmp_path / "cache")
        yield tmp_path / "cache"


def add_job(house: House, model: str) -> str:
    with house.sessions.begin() as session:
        hub_tokens.put(session, TENANT, Encryption(house.settings).encrypt(TOKEN), "acme")
    return house.add_job(house.add_dataset(["one", "two"]), model=model, revision=COMMIT)


def supervisor(house: House) -> Supervisor:
    training = (sys.executable, "-m", "tests.worker.stand_in", "succeed")
    attempt = house.claim()
    assert TOKEN not in repr(attempt)
    return Supervisor(
        attempt, house.sessions, house.storage, house.settings, draining=threading.Event(), training=training
    )


def test_it_lies_in_the_jobs_folder_and_in_no_cache(house: House, cache: Path) -> None:
    add_job(house, "acme/private")
    files = Files(house.claim(), house.settings, Transfers(house.storage, lambda _: None))
    files.fetch()
    folder = files.folder / MODELS / COMMIT
    assert Task.read(files.folder).private == folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert not list(cache.glob("models--*"))


def test_what_needs_no_token_is_left_to_the_training_process(house: House) -> None:
    add_job(house, "acme/open")
    files = Files(house.claim(), house.settings, Transfers(house.storage, lambda _: None))
    files.fetch()
    assert Task.read(files.folder).private is None
    assert not (files.folder / MODELS).exists()


def test_a_model_that_is_gone_is_the_requests_error_and_a_hub_that_is_away_is_not(
    house: House, repo: Repo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = add_job(house, "acme/private")
    with monkeypatch.context() as away:
        away.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        assert not supervisor(house).run()
    assert (house.job(job).status, house.job(job).failures) == (Status.QUEUED, 1)
    repo.readers = ()
    assert supervisor(house).run()
    found = house.job(job)
    assert found.error
    assert (found.status, found.error["code"], found.error["fault"]) == ("failed", "model_not_found", "user_error")
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_worker_with_another_key_fails_on_our_side(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    job = add_job(house, "acme/private")
    other = House(house.settings.model_copy(update={"secret_key": SecretStr("x" * 32)}), house.sessions, house.storage)
    assert not supervisor(other).run()
    assert (house.job(job).status, house.job(job).failures) == (Status.QUEUED, 1)
    assert "SEFT_SECRET_KEY" in str([event.data for event in house.told(job)])
    assert TOKEN not in "".join(capfd.readouterr())
    assert supervisor(house).run()
    assert house.job(job).status == Status.SUCCEEDED


def test_a_download_ends_with_its_attempt(house: House, tmp_path: Path) -> None:
    source = find_on_hub("acme/private", None, token=lambda: TOKEN)
    assert TOKEN not in repr(source)
    transfers = Transfers(house.storage, lambda _: None)
    transfers.close(lambda: None, 10)
    with pytest.raises(TransferError, match="ended"):
        fetch_into(tmp_path / "into", source, alive=transfers.check)
    assert not (tmp_path / "into").exists()
