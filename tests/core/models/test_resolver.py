"""How model references are resolved, and which models are rejected."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core.access.encryption import Encryption
from core.access.hub_tokens import HubTokens
from core.errors import Code, ProblemError
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.models.resolver import SETTLED_SECONDS, ModelResolver
from core.settings import Settings
from seft.models.shapes import Shapes, shapes
from seft.models.source import ModelSource
from tests.hollow import weights, write_hollow


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    return write_hollow(tmp_path / "models" / "tiny").parent


def resolver(settings: Settings) -> ModelResolver:
    """Return a resolver. It connects to nothing until it is used."""
    sessions = make_sessions(make_engine(settings))
    return ModelResolver(settings, sessions, Storage(settings), HubTokens(Encryption(settings), sessions))


def rejection(settings: Settings, reference: str, revision: str | None = None) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        resolver(settings).find("ours", reference, revision)
    return caught.value


def test_a_local_model_is_found_only_under_a_root(settings: Settings, roots: Path) -> None:
    ours = settings.model_copy(update={"model_roots": [roots]})
    assert resolver(ours).find("ours", "tiny", None).path == roots / "tiny"
    for outside in (str(roots / "tiny"), "../models/tiny", "nothing"):
        error = rejection(ours, outside)
        assert error.code in {Code.MODEL_REFUSED, Code.MODEL_NOT_FOUND}
        assert error.flaws[0].param == "model"
        assert outside in error.flaws[0].value


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("SmolLM2-135M-Instruct", "deep/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("smollm", "deep/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("SmolML2-135M-Instruct", "deep/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("other/tiny2", "tiny"),
        ("zzz", None),
        ("t", None),
    ],
)
def test_an_unknown_model_is_compared_with_the_shared_ones(
    settings: Settings, roots: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, meant: str | None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(roots / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (roots / "deep").mkdir()
    (roots / "deep" / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    error = rejection(settings.model_copy(update={"model_roots": [roots]}), wrong)
    assert error.code in {Code.MODEL_NOT_FOUND, Code.HUB_UNREACHABLE}
    way_out = error.flaws[0].way_out
    assert way_out.startswith(f"Did you mean {meant!r}? ") if meant else "Did you mean" not in way_out


def test_pickles_are_rejected(settings: Settings, roots: Path) -> None:
    (roots / "tiny" / "model.safetensors").rename(roots / "tiny" / "pytorch_model.bin")
    error = rejection(settings.model_copy(update={"model_roots": [roots]}), "tiny")
    assert error.code is Code.MODEL_REFUSED
    assert "pickle" in error.message


def test_a_local_model_has_no_revisions(settings: Settings, roots: Path) -> None:
    error = rejection(settings.model_copy(update={"model_roots": [roots]}), "tiny", "main")
    assert (error.code, error.flaws[0].param) == (Code.INVALID_REQUEST, "revision")


def test_the_headers_of_unchanged_files_are_read_once_and_those_of_changed_files_again(
    settings: Settings, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = resolver(settings.model_copy(update={"model_roots": [roots]}))
    read = list[str]()

    def count(source: ModelSource) -> Shapes:
        read.append(source.reference)
        return shapes(source)

    def blocks() -> int:
        return len(models.dimensions("ours", models.find("ours", "tiny", None)).blocks)

    def age(seconds: float) -> None:
        for file in (roots / "tiny").iterdir():
            os.utime(file, (file.stat().st_mtime - seconds,) * 2)

    monkeypatch.setattr("core.models.resolver.shapes", count)
    assert [blocks(), blocks()] == [4, 4]
    assert len(read) == 2, "new files may still change"
    age(2 * SETTLED_SECONDS)
    assert [blocks(), blocks()] == [4, 4]
    assert len(read) == 3
    (roots / "tiny" / "model.safetensors").write_bytes(weights(3))
    assert blocks() == 3
    age(2 * SETTLED_SECONDS)
    (roots / "tiny" / ".#notes.txt").symlink_to("user@host.1234")
    assert [blocks(), blocks()] == [3, 3]
    assert len(read) == 5


def test_a_local_model_that_vanishes_is_reported_as_missing(settings: Settings, roots: Path) -> None:
    models = resolver(settings.model_copy(update={"model_roots": [roots]}))
    source = models.find("ours", "tiny", None)
    shutil.rmtree(roots / "tiny")
    for path in (roots / "tiny", roots / "tiny.gguf"):
        with pytest.raises(ProblemError) as caught:
            models.dimensions("ours", replace(source, path=path))
        assert caught.value.code is Code.MODEL_NOT_FOUND
    (roots / "tiny").mkdir()
    with pytest.raises(ProblemError, match=r"has no model\.safetensors"):
        models.dimensions("ours", source)


def test_an_unreachable_hub_is_reported_as_such(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert rejection(settings, "owner/name").code is Code.HUB_UNREACHABLE
