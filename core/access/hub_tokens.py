"""Tenants' access tokens for the model hub, for private and gated models and datasets. A tenant has at most one.

A token is stored encrypted and never shown. It is decrypted only to push a result, to check whether it may push, to
read models and datasets that are not public, and to encrypt it with a new key.
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
from core.tables import HubToken, Json
from seft.models.hub_files import DENIED_STATUSES, HUB_SECONDS

HOW_TO_SET = "PUT /hub-token (`seft hub-token set`, or the page Keys in the dashboard)"
"""How a tenant stores its token: by the API, the command line or the dashboard."""


def account(token: str) -> Json:
    """Return what the hub says about a token: the `name` of its account, the `orgs` of the account, and its rights.

    Raises INVALID_REQUEST if the hub rejects the token, HUB_UNREACHABLE if the hub does not answer, and CONFLICT if the
    service does not use the hub.
    """
    if constants.is_offline_mode():
        raise ProblemError(Code.CONFLICT, "The service does not use the hub (HF_HUB_OFFLINE).")
    address, headers = f"{constants.ENDPOINT}/api/whoami-v2", {"Authorization": f"Bearer {token}"}
    try:
        answer = hub.get_session().get(address, headers=headers, timeout=HUB_SECONDS)  # `HfApi.whoami` has no timeout
        if answer.status_code not in DENIED_STATUSES:
            found: Json = answer.raise_for_status().json()
            return {**found, "name": str(found["name"])}
    except (HTTPError, OSError, ValueError, LookupError, TypeError) as error:
        message = f"The hub did not return the owner of this token: {type(error).__name__}. Try again later."
        raise ProblemError(Code.HUB_UNREACHABLE, message) from error
    flaw = Flaw("token", "must be valid on the hub", "(not shown)", "Create a token with read access on the hub.")
    raise ProblemError(
        Code.INVALID_REQUEST, "The hub rejected this token. Create a token with read access on the hub.", (flaw,)
    )


def write_flaw(account: Json, repository: str) -> tuple[str, str] | None:
    """Return why the token of a hub account cannot write to `owner/name`, as (rule, way out).

    Returns None if it can write, or if this is not known. A fine-grained token may hide the account's organisations.
    """
    match account:
        case {"auth": {"accessToken": {"role": "read"}}}:
            way_out = f"Create a token with write access on the hub, and store it with {HOW_TO_SET}."
            return "must be a repository to which your hub token may write; the token can only read", way_out
        case {"auth": {"accessToken": {"role": "write"}}, "orgs": [*orgs]}:
            owners = [account["name"], *(str(org["name"]) for org in orgs if isinstance(org, dict) and "name" in org)]
            if repository.partition("/")[0].lower() not in {owner.lower() for owner in owners}:
                rule = "must belong to the account of your hub token, or to one of its organisations"
                return rule, f"Use one of these owners: {', '.join(owners)}."
    return None


def put(session: Session, tenant: str, encrypted: str, name: str) -> HubToken:
    """Store the tenant's token, which replaces an earlier one. `name` is the hub account that owns the token."""
    values = {"id": ids.new("hub"), "name": name, "sealed": encrypted, "created_at": func.now()}
    row = insert(HubToken).values(tenant=tenant, **values)
    upsert = row.on_conflict_do_update(index_elements=["tenant"], set_=values).returning(HubToken)
    return session.scalars(upsert, execution_options={"populate_existing": True}).one()


def get(session: Session, tenant: str) -> HubToken:
    """Return the row of the tenant's token. Raises NOT_FOUND if the tenant has none."""
    row = session.get(HubToken, tenant)
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"Your tenant has no hub token. Set one with {HOW_TO_SET}.")
    return row


def remove(session: Session, tenant: str) -> HubToken:
    """Delete the tenant's token and return the deleted row. Raises NOT_FOUND if the tenant has none."""
    row = get(session, tenant)
    session.delete(row)
    session.flush()
    return row


def find_encrypted(session: Session, tenant: str) -> str | None:
    """Return the tenant's token in encrypted form, or None if the tenant has none."""
    return session.scalar(select(HubToken.sealed).where(HubToken.tenant == tenant))


def encrypt_again(session: Session, encryption: Encryption) -> tuple[int, list[str]]:
    """Encrypt all tokens with the newest key. Idempotent.

    Returns the number of encrypted tokens, and the tenants whose token no key can decrypt. Their tokens do not change.
    """
    done, unreadable = 0, []
    for row in session.scalars(select(HubToken).order_by(HubToken.tenant).with_for_update()):
        try:
            token = encryption.decrypt(row.sealed, row.tenant)
        except ProblemError:
            unreadable.append(row.tenant)
            continue
        row.sealed = encryption.encrypt(token, row.tenant)
        done += 1
    return done, unreadable


class HubTokens:
    """Reads and decrypts the tokens of tenants. Safe to share between threads."""

    def __init__(self, encryption: Encryption, sessions: sessionmaker[Session]) -> None:
        self._encryption, self._sessions = encryption, sessions

    def get(self, tenant: str) -> str | None:
        """Return the tenant's token in plain text, or None if the tenant has none.

        Raises the errors of `Encryption.decrypt`.
        """
        with self._sessions.begin() as session:
            encrypted = find_encrypted(session, tenant)
        return None if encrypted is None else self._encryption.decrypt(encrypted, tenant)
