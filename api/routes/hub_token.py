"""The tenant's access token for the model hub: put, get, delete. No response contains the token."""

from fastapi import APIRouter

from api.deps import Admin, Auth, CurrentServices, JsonRoute
from api.errors import BODY, responses
from api.schemas.models import HubTokenRequest, HubTokenView
from api.usecases import hub_token as usecases
from core.access import hub_tokens
from core.errors import Code

router = APIRouter(prefix="/hub-token", tags=["models"], route_class=JsonRoute)


@router.put("", responses=responses(*BODY, Code.CONFLICT, Code.HUB_UNREACHABLE, Code.HUB_BUSY))
def put_hub_token(services: CurrentServices, caller: Admin, body: HubTokenRequest) -> HubTokenView:
    """Store the token with which your tenant uses private repositories of the model hub. Replaces an earlier token.

    The token is stored encrypted. The service sends it only to the hub. It asks the hub immediately who owns the token.
    Later it uses the token for pushes, and to read what the hub refuses without it.
    """
    return usecases.put(services, caller, body)


@router.get("", responses=responses(Code.NOT_FOUND))
def get_hub_token(services: CurrentServices, caller: Auth) -> HubTokenView:
    """Get the name of the hub account that owns your tenant's token, and the time when the token was stored."""
    with services.sessions.begin() as session:
        return HubTokenView.of(hub_tokens.get(session, caller.tenant))


@router.delete("", responses=responses(Code.NOT_FOUND))
def delete_hub_token(services: CurrentServices, caller: Admin) -> HubTokenView:
    """Delete your tenant's hub token. Files that running jobs downloaded with it are deleted when those jobs end."""
    return usecases.delete(services, caller)
