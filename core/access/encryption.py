"""Encrypt the secrets of tenants. The database stores only encrypted text. The encryption keys are settings.

An encrypted text is bound to its tenant: it is decrypted only for the tenant for which it was encrypted. So a
person who can write to the database cannot use the token of another tenant by copying it.
"""

import base64
import hashlib
import os

from pydantic import SecretStr

from core.errors import Code, Flaw, ProblemError
from core.settings import Settings

PREFIX = "2."
"""Start of every encrypted text. A text without it was encrypted by version 1, which did not bind it to a tenant."""
NONCE_BYTES = 12


class Encryption:
    """Encrypts text with the setting `secret_key`. Decrypts it with `secret_key` and the keys in `old_secret_keys`."""

    def __init__(self, settings: Settings) -> None:
        self._newest = settings.secret_key
        self._keys = [key for key in (settings.secret_key, *settings.old_secret_keys) if key is not None]

    def encrypt(self, text: str, tenant: str) -> str:
        """Return the encrypted text. Raises CONFLICT if the setting `secret_key` is not set."""
        if self._newest is None:
            flaw = Flaw("SEFT_SECRET_KEY", "must be set on the server", "not set", "Ask the operator to set it.")
            raise ProblemError(
                Code.CONFLICT,
                "The service cannot store a secret, because SEFT_SECRET_KEY is not set on the server.",
                (flaw,),
            )
        return _encrypt(self._newest, text.encode(), tenant)

    def decrypt(self, encrypted: str, tenant: str) -> str:
        """Return the decrypted text.

        Raises INVALID_REQUEST if no key in the settings can decrypt the text, or if it is bound to another tenant.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.fernet import InvalidToken

        bound = encrypted.startswith(PREFIX)
        for key in self._keys:
            try:
                text = _decrypt(key, encrypted, tenant) if bound else _decrypt_v1(key, encrypted)
                return text.decode()
            except (InvalidTag, InvalidToken, ValueError):  # ValueError: the text is damaged
                continue
        way_out = (
            "Set the token again with PUT /hub-token (`seft hub-token set`), or ask the operator to restore the earlier"
            " key."
        )
        rule = "must be the key that encrypted the hub token, or SEFT_OLD_SECRET_KEYS must contain that key"
        flaw = Flaw("SEFT_SECRET_KEY", rule, "a different key, or not set", way_out)
        raise ProblemError(
            Code.INVALID_REQUEST, "Your tenant's hub token cannot be decrypted with SEFT_SECRET_KEY.", (flaw,)
        )


def _encrypt(secret: SecretStr, text: bytes, tenant: str) -> str:
    """Encrypt with AES-256-GCM. The tenant is the associated data, and the random nonce precedes the encrypted text."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(NONCE_BYTES)
    encrypted: bytes = nonce + AESGCM(_aes_key(secret)).encrypt(nonce, text, tenant.encode())
    return PREFIX + base64.urlsafe_b64encode(encrypted).decode()


def _decrypt(secret: SecretStr, encrypted: str, tenant: str) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = base64.urlsafe_b64decode(encrypted.removeprefix(PREFIX))
    text: bytes = AESGCM(_aes_key(secret)).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], tenant.encode())
    return text


def _decrypt_v1(secret: SecretStr, encrypted: str) -> bytes:
    """Decrypt a text of version 1 with Fernet. It is not bound to a tenant."""
    from cryptography.fernet import Fernet

    key = hashlib.sha256(secret.get_secret_value().encode()).digest()
    text: bytes = Fernet(base64.urlsafe_b64encode(key)).decrypt(encrypted)
    return text


def _aes_key(secret: SecretStr) -> bytes:
    """Derive the key with HKDF, so that it differs from the key of version 1."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derivation = HKDF(SHA256(), length=32, salt=None, info=b"seft hub tokens")
    key: bytes = derivation.derive(secret.get_secret_value().encode())
    return key
