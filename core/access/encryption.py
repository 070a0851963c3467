"""Encrypt the secrets of tenants. The database stores only encrypted text. The encryption key is a setting."""

import base64
import hashlib
from typing import TYPE_CHECKING

from pydantic import SecretStr

from core.errors import Code, Flaw, ProblemError
from core.settings import Settings

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class Encryption:
    """Encrypts and decrypts text with the key from the setting `secret_key`."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.secret_key

    def encrypt(self, text: str) -> str:
        """Return the encrypted text. Raises CONFLICT if the setting `secret_key` is not set."""
        if self._secret is None:
            flaw = Flaw("SEFT_SECRET_KEY", "must be set on the server", "not set", "Ask the operator to set it.")
            raise ProblemError(
                Code.CONFLICT,
                "The service cannot store a secret, because SEFT_SECRET_KEY is not set on the server.",
                (flaw,),
            )
        encrypted: bytes = self._cipher(self._secret).encrypt(text.encode())
        return encrypted.decode()

    def decrypt(self, encrypted: str) -> str:
        """Return the decrypted text.

        Raises INVALID_REQUEST if the setting `secret_key` is not set or is not the key that encrypted the text.
        """
        from cryptography.fernet import InvalidToken

        try:
            if self._secret is not None:
                text: bytes = self._cipher(self._secret).decrypt(encrypted)
                return text.decode()
        except InvalidToken:
            pass
        way_out = "Set the token again with PUT /hub-token, or ask the operator to restore the earlier key."
        rule = "must be the key that encrypted the hub token"
        flaw = Flaw("SEFT_SECRET_KEY", rule, "a different key, or not set", way_out)
        raise ProblemError(
            Code.INVALID_REQUEST, "Your tenant's hub token cannot be decrypted with SEFT_SECRET_KEY.", (flaw,)
        )

    def _cipher(self, secret: SecretStr) -> "Fernet":
        from cryptography.fernet import Fernet

        key = hashlib.sha256(secret.get_secret_value().encode()).digest()
        return Fernet(base64.urlsafe_b64encode(key))
