"""Browsers that are signed in. A browser's cookie holds a random token, never the API key. The database holds its hash.

The token is rotated while it is in use, so a stolen token soon stops working. Revoking an API key ends its sign-ins.
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
"""Time without a request after which a sign-in expires."""
ROTATION = timedelta(minutes=15)
GRACE = timedelta(minutes=1)
"""Time for which the previous token stays valid after a rotation, for requests sent at the same moment."""


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """The sign-in behind a browser's request."""

    key: ApiKey
    csrf: str
    token: str
    """Token for the browser's cookie from now on."""


def begin(session: Session, secret: str) -> BrowserSession | None:
    """Sign a browser in with an API key. Returns None if the key is unknown or revoked. Deletes expired sign-ins."""
    key = keys.verify(session, secret)
    if key is None:
        return None
    now = func.now()
    session.execute(delete(SignIn).where(or_(SignIn.created_at < now - LIFE, SignIn.rotated_at < now - IDLE)))
    token, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(16)
    session.add(SignIn(key_id=key.id, sha256=digest(token), csrf=csrf))
    return BrowserSession(key, csrf, token)


def authenticate(session: Session, token: str) -> BrowserSession | None:
    """Return the sign-in of the browser with this token. Returns None if it has ended or expired."""
    now, sha256 = func.now(), digest(token)
    due = SignIn.rotated_at < now - ROTATION
    query = select(SignIn, due).where(
        or_(SignIn.sha256 == sha256, (SignIn.former_sha256 == sha256) & (SignIn.rotated_at > now - GRACE)),
        SignIn.created_at > now - LIFE,
        SignIn.rotated_at > now - IDLE,
    )
    match = session.execute(query).first()
    key = keys.find(session, match[0].key_id) if match else None
    if match is None or key is None:
        return None
    row, rotate = match
    return BrowserSession(key, row.csrf, _rotate(session, row, token) if rotate else token)


def end(session: Session, token: str) -> None:
    """Sign the browser out."""
    sha256 = digest(token)
    session.execute(delete(SignIn).where(or_(SignIn.sha256 == sha256, SignIn.former_sha256 == sha256)))


def _rotate(session: Session, row: SignIn, token: str) -> str:
    """Replace the token and return the new one. Return the old one if another request has just replaced it."""
    fresh = secrets.token_urlsafe(32)
    change = (
        update(SignIn)
        .where(SignIn.id == row.id, SignIn.sha256 == digest(token))
        .values(sha256=digest(fresh), former_sha256=SignIn.sha256, rotated_at=func.now())
        .returning(SignIn.id)
    )
    changed = session.execute(change, execution_options={"synchronize_session": False}).first()
    return fresh if changed else token
