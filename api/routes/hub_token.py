"""The tenant's own token of the model hub: given, asked about, forgotten. No answer shows it."""

from fastapi import APIRouter, Depends

from api.deps import Admin, Auth, CurrentServices, RequireContentType
from api.errors import BODY, responses
from api.limits import JsonRoute
from api.schemas.models import HubTokenRequest, HubTokenView
from core.access import audit, hub_tokens
from core.errors import Code

router = APIRouter(prefix="/hub-token", tags=["models"], route_class=JsonRoute)


@router.put(
    "",
    operation_id="put_hub_token",
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(*BODY, Code.CONFLICT, Code.HUB_UNREACHABLE, Code.HUB_BUSY),
)
def put_hub_token(services: CurrentServices, caller: Admin, body: HubTokenRequest) -> HubTokenView:
    """Give your tenant's token of the model hub, in the place of the one before. It opens private models and datasets.

    It is kept encrypted and shown to nobody but the hub, where that refuses something to the service itself.
    """
    token = body.token.get_secret_value()
    sealed = services.seals.encrypt(token)
    name = services.models.token_owner(token)
    with services.sessions.begin() as session:
        row = hub_tokens.put(session, caller.tenant, sealed, name)
        audit.record(session, caller, "put_hub_token", row.id)
        return HubTokenView.of(row)


@router.get("", operation_id="get_hub_token", responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST))
def get_hub_token(services: CurrentServices, caller: Auth) -> HubTokenView:
    """Whether your tenant has given a token of the model hub: whose, and when."""
    with services.sessions.begin() as session:
        return HubTokenView.of(hub_tokens.get(session, caller.tenant))


@router.delete("", operation_id="delete_hub_token", responses=responses(Code.NOT_FOUND, Code.INVALID_REQUEST))
def delete_hub_token(services: CurrentServices, caller: Admin) -> HubTokenView:
    """Forget your tenant's token. What jobs have fetched with it goes when they end."""
    with services.sessions.begin() as session:
        row = hub_tokens.remove(session, caller.tenant)
        audit.record(session, caller, "delete_hub_token", row.id)
        return HubTokenView.of(row)
