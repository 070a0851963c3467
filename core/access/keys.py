"""API keys. The database stores only their SHA-256 hashes.

A key is 256 random bits. So its hash needs no salt and no slow hash function, and a lookup by hash reveals nothing.
"""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from functools import cache

from sqlalchemy import Select, bindparam, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from core import ids
from core.errors import Code, ProblemError
from core.infra.database import newest_first
from core.tables import ApiKey

KEY_PREFIX = "seft_"
"""Start of every API key."""
USE_SECONDS = 60
"""Minimum seconds between two updates of a key's `last_used_at`."""


class Scope(StrEnum):
    """What a key may do. `write` includes `read`, and `admin` includes `write`.

    `metrics` allows only `GET /metrics`, which no other scope allows. Only the operator can create such a key, because
    the metrics count the jobs of all tenants.
    """

    METRICS = "metrics"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def allows(self, needed: "Scope") -> bool:
        """Return whether a key with this scope may run an operation that needs the scope `needed`."""
        if Scope.METRICS in {self, needed}:
            return self is needed
        order = list(Scope)
        return order.index(self) >= order.index(needed)


def issue(session: Session, tenant: str, name: str, scope: Scope) -> tuple[ApiKey, str]:
    """Create a key. Return its row and its secret. The secret is not stored anywhere."""
    secret = f"{KEY_PREFIX}{secrets.token_urlsafe(32)}"
    key = ApiKey(id=ids.new("key"), tenant=tenant, name=name, scope=scope, sha256=digest(secret))
    session.add(key)
    session.flush()
    return key, secret


def verify(session: Session, secret: str) -> ApiKey | None:
    """Return the key with this secret, and update its `last_used_at`. Returns None if the key is unknown or revoked."""
    return _use(session, _valid_key_query(ApiKey.sha256), digest(secret))


def find(session: Session, key_id: str) -> ApiKey | None:
    """Return the key with this id, and update its `last_used_at`. Returns None if the key is unknown or revoked.

    Use it only for a caller who has already sent the secret of the key, such as a browser with a session.
    """
    return _use(session, _valid_key_query(ApiKey.id), key_id)


@cache
def _valid_key_query(column: InstrumentedAttribute[str]) -> Select[ApiKey, bool]:
    """Return the query for a key that is not revoked and whose `column` equals the parameter `value`.

    The second value of the result is true if `last_used_at` must be updated.
    """
    due = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(seconds=USE_SECONDS))
    return select(ApiKey, due).where(column == bindparam("value"), ApiKey.revoked_at.is_(None))


def _use(session: Session, query: Select[ApiKey, bool], value: str) -> ApiKey | None:
    row = session.execute(query, {"value": value}).first()
    if row is None:
        return None
    key, due = row
    if due:
        # If the row is locked, another request is updating it too, or the key is being revoked: do not wait.
        unlocked = select(ApiKey.id).where(ApiKey.id == key.id).with_for_update(skip_locked=True)
        change = update(ApiKey).where(ApiKey.id.in_(unlocked)).values(last_used_at=func.now())
        session.execute(change, execution_options={"synchronize_session": False})
    return key


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> tuple[Sequence[ApiKey], bool]:
    """Return up to `limit` keys older than `after`, newest first, revoked ones included.

    The second value is true if there are older keys.
    """
    return newest_first(session, ApiKey, ApiKey.tenant == tenant, after=after, limit=limit)


def revoke(session: Session, tenant: str, key_id: str, *, by: str) -> ApiKey:
    """Revoke a key immediately. Idempotent.

    Raises NOT_FOUND if the tenant has no such key, and CONFLICT if `by`, the key that sent the request, is the same
    key. So a tenant keeps at least one key, unless two of its keys revoke each other at the same moment.
    """
    query = select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant == tenant).with_for_update()
    key = session.scalar(query) if ids.is_id("key", key_id) else None
    if key is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no key {key_id!r}. List your keys with GET /keys.")
    if key.id == by:
        raise ProblemError(Code.CONFLICT, "A key cannot revoke itself. Create another key and revoke this one with it.")
    if key.revoked_at is None:
        key.revoked_at = func.now()
        session.flush()
        session.refresh(key)
    return key


def digest(secret: str) -> str:
    """Return the SHA-256 of a text. API keys and session tokens are stored only in this form."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
