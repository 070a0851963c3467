"""Tokens of the model hub: a tenant's own, for the models and datasets that the hub gives to nobody without one.

A token is kept sealed, never shown, and opened only where the hub has refused something to the service itself.
"""

import huggingface_hub as hub
from httpx2 import HTTPError
from huggingface_hub import constants
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, sessionmaker

from core import ids
from core.access.encryption import Encryption
from core.errors import Code, Flaw, ProblemError
from core.tables import HubToken
from seft.models.source import DENIED_STATUSES, HUB_SECONDS


def account_name(token: str) -> str:
    """The name that the hub knows its owner by; INVALID_REQUEST where it knows none, HUB_UNREACHABLE."""
    address, headers = f"{constants.ENDPOINT}/api/whoami-v2", {"Authorization": f"Bearer {token}"}
    try:
        answer = hub.get_session().get(address, headers=headers, timeout=HUB_SECONDS)  # `HfApi.whoami` waits for ever
        if answer.status_code not in DENIED_STATUSES:
            return str(answer.raise_for_status().json()["name"])
    except (HTTPError, OSError, ValueError, KeyError) as error:
        told = f"The hub did not say whose token it is: {type(error).__name__}. Try again later."
        raise ProblemError(Code.HUB_UNREACHABLE, told) from error
    flaw = Flaw("token", "is one that the hub knows", "(not repeated)", "Make one that may read, at the hub.")
    raise ProblemError(Code.INVALID_REQUEST, "The hub does not know this token.", (flaw,))


def put(session: Session, tenant: str, sealed: str, name: str) -> HubToken:
    """The tenant's token is this one from now on."""
    values = {"id": ids.new("hub"), "name": name, "sealed": sealed, "created_at": func.now()}
    row = insert(HubToken).values(tenant=tenant, **values)
    kept = row.on_conflict_do_update(index_elements=["tenant"], set_=values).returning(HubToken)
    return session.scalars(kept, execution_options={"populate_existing": True}).one()


def get(session: Session, tenant: str) -> HubToken:
    """What is known of the tenant's token; or NOT_FOUND."""
    row = session.get(HubToken, tenant)
    if row is None:
        raise ProblemError(Code.NOT_FOUND, "Your tenant has given no hub token. PUT /hub-token takes one.")
    return row


def remove(session: Session, tenant: str) -> HubToken:
    """Forget the tenant's token; the row as it was."""
    row = get(session, tenant)
    session.delete(row)
    session.flush()
    return row


def encrypted(session: Session, tenant: str) -> str | None:
    """The tenant's token as it is kept; None where there is none."""
    return session.scalar(select(HubToken.sealed).where(HubToken.tenant == tenant))


class HubTokens:
    """Opens them. Safe to share between threads."""

    def __init__(self, seals: Encryption, sessions: sessionmaker[Session]) -> None:
        self._seals, self._sessions = seals, sessions

    def of(self, tenant: str) -> str | None:
        """The tenant's token; None where there is none, the error of `Seals.open` where it cannot be read."""
        with self._sessions.begin() as session:
            kept = encrypted(session, tenant)
        return None if kept is None else self._seals.open(kept)
