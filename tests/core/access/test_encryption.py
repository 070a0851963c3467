"""Encryption of secrets."""

import base64
import hashlib

import pytest
from cryptography.fernet import Fernet

from core.access.encryption import Encryption
from core.errors import Code, ProblemError
from core.settings import Settings

TEXT = "hf_secret"
OLD, NEW, OTHER = "k" * 32, "l" * 32, "m" * 32


def encryption(settings: Settings, key: str | None, *old: str) -> Encryption:
    return Encryption(Settings.model_validate(settings.model_dump() | {"secret_key": key, "old_secret_keys": old}))


def refused(with_keys: Encryption, encrypted: str, tenant: str = "ours") -> bool:
    with pytest.raises(ProblemError) as caught:
        with_keys.decrypt(encrypted, tenant)
    return caught.value.code is Code.INVALID_REQUEST


def test_only_the_same_key_decrypts(settings: Settings) -> None:
    original = encryption(settings, OLD)
    encrypted = original.encrypt(TEXT, "ours")
    assert TEXT not in encrypted
    assert encrypted != original.encrypt(TEXT, "ours")
    assert encryption(settings, OLD).decrypt(encrypted, "ours") == TEXT
    assert refused(encryption(settings, NEW), encrypted)
    assert refused(encryption(settings, None), encrypted)


def test_a_text_is_decrypted_for_its_tenant_alone(settings: Settings) -> None:
    keys = encryption(settings, NEW)
    assert refused(keys, keys.encrypt(TEXT, "ours"), "theirs")


def test_the_newest_key_encrypts_and_all_keys_decrypt(settings: Settings) -> None:
    before = encryption(settings, OLD).encrypt(TEXT, "ours")
    both = encryption(settings, NEW, OTHER, OLD)
    assert both.decrypt(before, "ours") == TEXT
    after = both.encrypt(TEXT, "ours")
    assert encryption(settings, NEW).decrypt(after, "ours") == TEXT
    assert refused(encryption(settings, OTHER, OLD), after)


def test_a_text_of_version_1_is_still_decrypted(settings: Settings) -> None:
    cipher = Fernet(base64.urlsafe_b64encode(hashlib.sha256(OLD.encode()).digest()))
    encrypted = cipher.encrypt(TEXT.encode()).decode()
    assert encryption(settings, NEW, OLD).decrypt(encrypted, "ours") == TEXT
    assert refused(encryption(settings, NEW), encrypted)


def test_nothing_is_encrypted_without_a_key(settings: Settings) -> None:
    with pytest.raises(ProblemError) as caught:
        encryption(settings, None, OLD).encrypt(TEXT, "ours")
    assert caught.value.code is Code.CONFLICT
    for short in ((OLD, "short"), ("short",)):
        with pytest.raises(ValueError, match="secret_key"):
            encryption(settings, *short)
