"""API keys. A key is 256 random bits: its SHA-256 needs no salt and no stretching, a look-up by it leaks nothing."""

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
from core.tables import ApiKey

USE_SECONDS = 60
"""How exact `last_used_at` is: one write in this time, however many requests come."""


class Scope(StrEnum):
    """What a key may do. `write` holds `read`, `admin` holds all; `metrics` is for a scraper and stands alone."""

    METRICS = "metrics"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def allows(self, needed: "Scope") -> bool:
        """Whether what needs `needed` may be done with this scope."""
        if Scope.METRICS in {self, needed}:
            return self in {needed, Scope.ADMIN}
        order = list(Scope)
        return order.index(self) >= order.index(needed)


def issue(session: Session, tenant: str, name: str, scope: Scope) -> tuple[ApiKey, str]:
    """A new key's row, and the secret, which is kept nowhere."""
    secret = f"seft_{secrets.token_urlsafe(32)}"
    key = ApiKey(id=ids.new("key"), tenant=tenant, name=name, scope=scope, sha256=digest(secret))
    session.add(key)
    session.flush()
    session.refresh(key)
    return key, secret


def verify(session: Session, secret: str) -> ApiKey | None:
    """The row of a key that was issued and not revoked; its use is noted."""
    return _used(session, _valid(ApiKey.sha256), digest(secret))


def find(session: Session, key_id: str) -> ApiKey | None:
    """The same by the id, for those who have shown the key before."""
    return _used(session, _valid(ApiKey.id), key_id)


@cache
def _valid(named: InstrumentedAttribute[str]) -> Select[ApiKey, bool]:
    """The query of the key whose column `named` has the value `name`, and whether its use is to be noted."""
    old = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - timedelta(seconds=USE_SECONDS))
    return select(ApiKey, old).where(named == bindparam("name"), ApiKey.revoked_at.is_(None))


def _used(session: Session, query: Select[ApiKey, bool], name: str) -> ApiKey | None:
    found = session.execute(query, {"name": name}).first()
    if found is None:
        return None
    key, due = found
    if due:
        # Whoever holds the row is noting the same, or revokes the key: nothing to wait for.
        free = select(ApiKey.id).where(ApiKey.id == key.id).with_for_update(skip_locked=True)
        note = update(ApiKey).where(ApiKey.id.in_(free)).values(last_used_at=func.now())
        session.execute(note, execution_options={"synchronize_session": False})
    return key


def page(session: Session, tenant: str, *, after: str | None, limit: int) -> tuple[Sequence[ApiKey], bool]:
    """Up to `limit` keys, revoked ones included, newest first, those older than `after`; and whether there are more."""
    query = select(ApiKey).where(ApiKey.tenant == tenant).order_by(ApiKey.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(ApiKey.id < after)
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit


def revoke(session: Session, tenant: str, key_id: str, *, by: str) -> ApiKey:
    """End a key at once; again is no error. NOT_FOUND, or CONFLICT when a key would revoke itself.

    So the key that revokes the others stays, and a tenant does not lock itself out, unless two of its keys revoke each
    other at one moment.
    """
    query = select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant == tenant).with_for_update()
    key = session.scalar(query) if ids.is_id("key", key_id) else None
    if key is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no key {key_id!r}. GET /keys lists yours.")
    if key.id == by:
        raise ProblemError(Code.CONFLICT, "A key cannot revoke itself. Make another one and revoke this one with it.")
    if key.revoked_at is None:
        key.revoked_at = func.now()
        session.flush()
        session.refresh(key)
    return key


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
