"""The hashes of a model: of the files that a loader reads, computed once, or taken from the hub's cache."""

from pathlib import Path
from threading import Event

import pytest

from seft.checkpoint import provenance
from seft.checkpoint.facts import Base, sha256
from seft.checkpoint.provenance import describe_model, hash_model, require_same_files
from seft.errors import Cancelled, ReproduceError, SeftError
from seft.models.source import Kind, ModelSource
from worker.reporting import USER_ERRORS

FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (folder := tmp_path / "model").mkdir()
    for name in (*FILES, "README.md", "model-old.safetensors", "notes.txt"):
        (folder / name).write_text(name)
    return folder


def test_the_files_that_are_read_are_hashed_and_no_others(model: Path) -> None:
    source = ModelSource(str(model), Kind.FOLDER, model, None, {}, "mit")
    expected = {name: sha256(model / name) for name in FILES}
    assert describe_model(source)() == Base("model", Kind.FOLDER, None, "mit", files=expected)


def test_a_file_that_cannot_be_read_is_an_error_that_names_the_model(tmp_path: Path) -> None:
    (broken := tmp_path / "broken.gguf").symlink_to("/proc/self/mem")
    source = ModelSource(str(broken), Kind.GGUF, broken, None, {}, None)
    with pytest.raises(SeftError, match=r"broken\.gguf' cannot be read") as caught:
        describe_model(source)()
    assert not isinstance(caught.value, USER_ERRORS), "a job is tried again"


def test_waiting_for_the_hashes_calls_the_caller_who_may_stop(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = Event()
    monkeypatch.setattr(provenance, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(provenance, "hash_model", lambda _: hashing.wait(60) and {})

    def stop() -> None:
        raise Cancelled

    base = describe_model(ModelSource(str(model), Kind.FOLDER, model, None, {}, None), stop)
    with pytest.raises(Cancelled):
        base()
    hashing.set()
    assert base().files == {}


def test_a_large_file_of_the_hubs_cache_is_known_by_its_name_and_a_link_elsewhere_is_hashed(model: Path) -> None:
    name, blobs = "e" * 64, model.parent / "models--a--b" / "blobs"
    commit = blobs.parent / "snapshots" / "c0ffee"
    for folder in (blobs, commit):
        folder.mkdir(parents=True)
    (blobs / name).write_text("weights")
    for file in FILES:
        (commit / file).write_text(file)
    (commit / "model.safetensors").unlink()
    (commit / "model.safetensors").symlink_to(blobs / name)
    assert hash_model(commit)["model.safetensors"] == name
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(blobs / name)
    assert hash_model(model)["model.safetensors"] == sha256(blobs / name)


def test_the_name_of_a_gguf_file_does_not_matter_and_its_bytes_do() -> None:
    base = Base("a.gguf", Kind.GGUF, None, None, files={"a.gguf": "1"})
    require_same_files(base, {"renamed.gguf": "1"}, "--model")
    with pytest.raises(ReproduceError, match=r"another SHA-256 than recorded: a\.gguf\..*--model"):
        require_same_files(base, {"renamed.gguf": "2"}, "--model")


def test_a_model_of_the_current_folder_is_hashed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    assert hash_model(Path()) == hash_model(model)
    assert hash_model(Path("config.json")) == {"config.json": sha256(model / "config.json")}
