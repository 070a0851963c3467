"""What is entrusted to the service."""

import pytest

from core.access.encryption import Encryption
from core.errors import Code, ProblemError
from core.settings import Settings

TEXT = "hf_secret"


def seals(settings: Settings, key: str | None) -> Encryption:
    return Encryption(Settings.model_validate(settings.model_dump() | {"secret_key": key}))


def test_only_the_same_key_opens_what_was_closed(settings: Settings) -> None:
    ours = seals(settings, "k" * 32)
    closed = ours.close(TEXT)
    assert TEXT not in closed
    assert closed != ours.close(TEXT)
    assert seals(settings, "k" * 32).open(closed) == TEXT
    for key in ("l" * 32, None):
        with pytest.raises(ProblemError) as caught:
            seals(settings, key).open(closed)
        assert caught.value.code is Code.INVALID_REQUEST


def test_without_a_key_nothing_is_closed(settings: Settings) -> None:
    with pytest.raises(ProblemError) as caught:
        seals(settings, None).close(TEXT)
    assert caught.value.code is Code.CONFLICT
    with pytest.raises(ValueError, match="secret_key"):
        seals(settings, "short")
