"""Models at the door."""

from pathlib import Path

import pytest

from core.access.encryption import Encryption
from core.access.hub_tokens import HubTokens
from core.errors import Code, ProblemError
from core.infra.database import make_engine, make_sessions
from core.infra.storage import Storage
from core.models.resolver import ModelResolver
from core.settings import Settings
from tests.hollow import write_hollow


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    return write_hollow(tmp_path / "models" / "tiny").parent


def door(settings: Settings) -> ModelResolver:
    """Nothing is connected before it is used."""
    sessions = make_sessions(make_engine(settings))
    return ModelResolver(settings, sessions, Storage(settings), HubTokens(Encryption(settings), sessions))


def refusal(settings: Settings, reference: str, revision: str | None = None) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        door(settings).find("ours", reference, revision)
    return caught.value


def test_a_model_is_found_under_a_root_and_nowhere_else(settings: Settings, roots: Path) -> None:
    ours = settings.model_copy(update={"model_roots": [roots]})
    assert door(ours).find("ours", "tiny", None).path == roots / "tiny"
    for outside in (str(roots / "tiny"), "../models/tiny", "nothing"):
        error = refusal(ours, outside)
        assert error.code in {Code.MODEL_REFUSED, Code.MODEL_NOT_FOUND}
        assert error.flaws[0].param == "model"
        assert outside in error.flaws[0].value


def test_pickles_are_refused(settings: Settings, roots: Path) -> None:
    (roots / "tiny" / "model.safetensors").rename(roots / "tiny" / "pytorch_model.bin")
    error = refusal(settings.model_copy(update={"model_roots": [roots]}), "tiny")
    assert error.code is Code.MODEL_REFUSED
    assert "pickle" in error.message


def test_a_local_model_has_no_revisions(settings: Settings, roots: Path) -> None:
    error = refusal(settings.model_copy(update={"model_roots": [roots]}), "tiny", "main")
    assert (error.code, error.flaws[0].param) == (Code.INVALID_REQUEST, "revision")


def test_a_hub_that_does_not_answer_is_no_fault_of_the_model(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refusal(settings, "owner/name").code is Code.HUB_UNREACHABLE
