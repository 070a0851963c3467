"""What a tenant entrusts to the service, encrypted: the database holds it sealed, the settings alone hold the key."""

import base64
import hashlib
from typing import TYPE_CHECKING

from pydantic import SecretStr

from core.errors import Code, Flaw, ProblemError
from core.settings import Settings

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class Encryption:
    """Closes and opens with `secret_key`."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.secret_key

    def close(self, text: str) -> str:
        """The text, sealed; CONFLICT where the service has no key to do it with."""
        if self._secret is None:
            flaw = Flaw("SEFT_SECRET_KEY", "is set where the service runs", "nothing", "Have the operator set it.")
            raise ProblemError(Code.CONFLICT, "This service has no key to encrypt a secret with.", (flaw,))
        sealed: bytes = self._cipher(self._secret).encrypt(text.encode())
        return sealed.decode()

    def open(self, sealed: str) -> str:
        """The text; INVALID_REQUEST where it was sealed with another key than the service has now."""
        from cryptography.fernet import InvalidToken

        try:
            if self._secret is not None:
                opened: bytes = self._cipher(self._secret).decrypt(sealed)
                return opened.decode()
        except InvalidToken:
            pass
        way_out = "PUT /hub-token again, or have the operator set the key of before."
        flaw = Flaw("SEFT_SECRET_KEY", "is the one that the hub token was encrypted with", "another, or none", way_out)
        raise ProblemError(Code.INVALID_REQUEST, "Your tenant's hub token cannot be decrypted.", (flaw,))

    def _cipher(self, secret: SecretStr) -> "Fernet":
        from cryptography.fernet import Fernet

        key = hashlib.sha256(secret.get_secret_value().encode()).digest()
        return Fernet(base64.urlsafe_b64encode(key))
