"""API keys. A key is 256 random bits: its SHA-256 needs no salt and no stretching, a look-up by it leaks nothing."""

import hashlib
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import ids
from core.tables import ApiKey


def issue(session: Session, tenant: str, name: str) -> tuple[ApiKey, str]:
    """A new key's row, and the secret, which is kept nowhere."""
    secret = f"seft_{secrets.token_urlsafe(32)}"
    key = ApiKey(id=ids.new("key"), tenant=tenant, name=name, sha256=_hash(secret))
    session.add(key)
    session.flush()
    return key, secret


def verify(session: Session, secret: str) -> ApiKey | None:
    """The row of a key that was issued and not revoked."""
    return session.scalar(select(ApiKey).where(ApiKey.sha256 == _hash(secret), ApiKey.revoked_at.is_(None)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
