"""Encryption of secrets."""

import pytest

from core.access.encryption import Encryption
from core.errors import Code, ProblemError
from core.settings import Settings

TEXT = "hf_secret"


def encryption(settings: Settings, key: str | None) -> Encryption:
    return Encryption(Settings.model_validate(settings.model_dump() | {"secret_key": key}))


def test_only_the_same_key_decrypts(settings: Settings) -> None:
    original = encryption(settings, "k" * 32)
    encrypted = original.encrypt(TEXT)
    assert TEXT not in encrypted
    assert encrypted != original.encrypt(TEXT)
    assert encryption(settings, "k" * 32).decrypt(encrypted) == TEXT
    for key in ("l" * 32, None):
        with pytest.raises(ProblemError) as caught:
            encryption(settings, key).decrypt(encrypted)
        assert caught.value.code is Code.INVALID_REQUEST


def test_nothing_is_encrypted_without_a_key(settings: Settings) -> None:
    with pytest.raises(ProblemError) as caught:
        encryption(settings, None).encrypt(TEXT)
    assert caught.value.code is Code.CONFLICT
    with pytest.raises(ValueError, match="secret_key"):
        encryption(settings, "short")
