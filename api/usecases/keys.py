"""Use cases of API keys: create and revoke."""

from api.deps import Services
from api.schemas.keys import KeyRequest, KeySecret, KeyView
from api.usecases.audited import audited
from core.access import audit, keys
from core.access.audit import Caller
from core.access.keys import Scope


def create(services: Services, caller: Caller, body: KeyRequest) -> KeySecret:
    """Create a key for the caller's tenant. Only this result contains the secret."""
    with services.sessions.begin() as session:
        row, secret = keys.issue(session, caller.tenant, body.name, Scope(body.scope))
        audit.record(session, caller, "create_key", row.id)
        return KeySecret.of(row, secret=secret)


def revoke(services: Services, caller: Caller, key_id: str) -> KeyView:
    """Revoke a key. Idempotent. Raises CONFLICT if it is the key that sent the request."""
    return audited(services, caller, "revoke_key", KeyView.of, keys.revoke, key_id, by=caller.key_id)
