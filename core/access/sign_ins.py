"""Browsers that are signed in. Each holds a random token in a cookie, never the API key; the database holds its hash.

The token is replaced while it is used, so a stolen one is soon worthless; a revoked key ends all that it opened.
"""

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from core.access import keys
from core.access.keys import digest
from core.tables import ApiKey, SignIn

LIFE = timedelta(days=7)
IDLE = timedelta(days=1)
ROTATION = timedelta(minutes=15)
GRACE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Visit:
    """A signed-in browser's request."""

    key: ApiKey
    csrf: str
    token: str
    """What the browser's cookie is to hold from now on."""


def begin(session: Session, secret: str) -> Visit | None:
    """Sign a browser in with an API key; None when the key is none. What has run out is swept away."""
    key = keys.verify(session, secret)
    if key is None:
        return None
    now = func.now()
    session.execute(delete(SignIn).where(or_(SignIn.created_at < now - LIFE, SignIn.rotated_at < now - IDLE)))
    token, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(16)
    session.add(SignIn(key_id=key.id, sha256=digest(token), csrf=csrf))
    return Visit(key, csrf, token)


def visit(session: Session, token: str) -> Visit | None:
    """The visit of a browser with this token; None when it is signed in no more."""
    now, mine = func.now(), digest(token)
    due = SignIn.rotated_at < now - ROTATION
    query = select(SignIn, due).where(
        or_(SignIn.sha256 == mine, (SignIn.former_sha256 == mine) & (SignIn.rotated_at > now - GRACE)),
        SignIn.created_at > now - LIFE,
        SignIn.rotated_at > now - IDLE,
    )
    found = session.execute(query).first()
    key = keys.find(session, found[0].key_id) if found else None
    if found is None or key is None:
        return None
    row, old = found
    return Visit(key, row.csrf, _rotated(session, row, token) if old else token)


def end(session: Session, token: str) -> None:
    """Sign the browser out."""
    mine = digest(token)
    session.execute(delete(SignIn).where(or_(SignIn.sha256 == mine, SignIn.former_sha256 == mine)))


def _rotated(session: Session, row: SignIn, token: str) -> str:
    """A new token; the old one where another request has just made a new one."""
    fresh = secrets.token_urlsafe(32)
    change = (
        update(SignIn)
        .where(SignIn.id == row.id, SignIn.sha256 == digest(token))
        .values(sha256=digest(fresh), former_sha256=SignIn.sha256, rotated_at=func.now())
        .returning(SignIn.id)
    )
    done = session.execute(change, execution_options={"synchronize_session": False}).first()
    return fresh if done else token
