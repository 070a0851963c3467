"""Use cases of the tenant's token for the model hub: store and delete. No result contains the token."""

from api.deps import Services
from api.schemas.models import HubTokenRequest, HubTokenView
from api.usecases.audited import audited
from core.access import hub_tokens
from core.access.audit import Caller


def put(services: Services, caller: Caller, body: HubTokenRequest) -> HubTokenView:
    """Store the token of the caller's tenant, encrypted. Asks the hub first who owns it.

    Raises INVALID_REQUEST if the hub rejects the token, HUB_UNREACHABLE or HUB_BUSY if it does not say, and CONFLICT if
    the service has no key to encrypt tokens or does not use the hub.
    """
    token = body.token.get_secret_value()
    encrypted = services.encryption.encrypt(token, caller.tenant)
    name = services.models.token_owner(caller.tenant, token)
    return audited(services, caller, "put_hub_token", HubTokenView.of, hub_tokens.put, encrypted, name)


def delete(services: Services, caller: Caller) -> HubTokenView:
    """Delete the token. Raises NOT_FOUND if the tenant has none."""
    return audited(services, caller, "delete_hub_token", HubTokenView.of, hub_tokens.remove)
