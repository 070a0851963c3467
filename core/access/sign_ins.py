"""Sessions of browsers that have signed in. The cookie contains a random token and never the API key.

The database stores only the hash of the token. The token is replaced regularly while it is in use, so a stolen token
soon stops working. If an API key is revoked, its sessions end.
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
"""Age of the token at which a session expires. A session in use gets a new token every `ROTATION`."""
ROTATION = timedelta(minutes=15)
GRACE = timedelta(minutes=1)
"""Minimum time for which the previous token stays valid after its replacement. Concurrent requests still send it.

After this time, the previous token becomes invalid as soon as the new token is used. If the previous token is used
instead, the session gets another new token, because a browser that leaves a page may never receive the response.
"""


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """The session of the browser that sent a request."""

    key: ApiKey
    csrf: str
    token: str
    """Token that the browser's cookie must contain from now on."""


def begin(session: Session, secret: str) -> BrowserSession | None:
    """Start a session with an API key. Returns None if the key is unknown or revoked.

    Also deletes expired sessions.
    """
    key = keys.verify(session, secret)
    if key is None:
        return None
    now = func.now()
    session.execute(delete(SignIn).where(or_(SignIn.created_at < now - LIFE, SignIn.rotated_at < now - IDLE)))
    token, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(16)
    session.add(SignIn(key_id=key.id, sha256=digest(token), csrf=csrf))
    return BrowserSession(key, csrf, token)


def authenticate(session: Session, token: str) -> BrowserSession | None:
    """Return the session with this token. Returns None if the session has ended or expired."""
    now, sha256 = func.now(), digest(token)
    due, settled = (SignIn.rotated_at < now - age for age in (ROTATION, GRACE))
    query = select(SignIn, due, settled).where(
        or_(SignIn.sha256 == sha256, SignIn.former_sha256 == sha256),
        SignIn.created_at > now - LIFE,
        SignIn.rotated_at > now - IDLE,
    )
    match = session.execute(query).first()
    key = keys.find(session, match[0].key_id) if match else None
    if match is None or key is None:
        return None
    row, is_due, is_settled = match
    is_former = row.sha256 != sha256
    if is_settled if is_former else is_due:
        token = _rotate(session, row, token)
    elif is_settled and row.former_sha256 and not is_former:
        row.former_sha256 = None
    return BrowserSession(key, row.csrf, token)


def end(session: Session, token: str) -> None:
    """End the session with this token."""
    sha256 = digest(token)
    session.execute(delete(SignIn).where(or_(SignIn.sha256 == sha256, SignIn.former_sha256 == sha256)))


def _rotate(session: Session, row: SignIn, token: str) -> str:
    """Replace the token of a session and return the new one. `token` becomes the previous token.

    If another request has just replaced the token, return `token`, which stays valid for at least `GRACE`.
    """
    fresh = secrets.token_urlsafe(32)
    change = (
        update(SignIn)
        .where(SignIn.id == row.id, SignIn.sha256 == row.sha256)
        .values(sha256=digest(fresh), former_sha256=digest(token), rotated_at=func.now())
        .returning(SignIn.id)
    )
    changed = session.execute(change, execution_options={"synchronize_session": False}).first()
    return fresh if changed else token
