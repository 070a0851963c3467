"""Store and delete the tenant's access token for the model hub."""

from api.deps import Services
from api.schemas.models import HubTokenView
from api.usecases.audited import audited
from core.access import hub_tokens
from core.access.audit import Caller


def put(services: Services, caller: Caller, token: str) -> HubTokenView:
    """Encrypt and store the token.

    Replaces the tenant's earlier token. Raises INVALID_REQUEST if the hub rejects it.
    """
    encrypted = services.encryption.encrypt(token, caller.tenant)
    name = services.models.token_owner(caller.tenant, token)
    return audited(services, caller, "put_hub_token", HubTokenView.of, hub_tokens.put, encrypted, name)


def delete(services: Services, caller: Caller) -> HubTokenView:
    """Delete the tenant's token. Raises NOT_FOUND if the tenant has none."""
    return audited(services, caller, "delete_hub_token", HubTokenView.of, hub_tokens.remove)
