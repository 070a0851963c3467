"""API keys, and what was done with them. All of it needs a key whose scope is `admin`."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from api.deps import Admin, CurrentServices, Limit, RequireContentType
from api.errors import BODY, responses
from api.limits import JsonRoute
from api.schemas.keys import AuditPage, AuditView, KeyPage, KeyRequest, KeySecret, KeyView
from api.schemas.shared import LARGEST_ID
from api.usecases import keys as usecases
from core import ids
from core.access import audit, keys
from core.errors import Code

router = APIRouter(tags=["keys"], route_class=JsonRoute)


@router.post(
    "/keys",
    operation_id="create_key",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(*BODY),
)
def create_key(services: CurrentServices, caller: Admin, body: KeyRequest, response: Response) -> KeySecret:
    """Make a key of your tenant. The answer is the only one that shows it."""
    response.headers["Cache-Control"] = "no-store"
    return usecases.create(services, caller, body)


@router.get("/keys", operation_id="list_keys", responses=responses(Code.INVALID_REQUEST))
def list_keys(
    services: CurrentServices,
    caller: Admin,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("key"), description="Id of a key: those made before it.")
    ] = None,
    limit: Limit = 20,
) -> KeyPage:
    """Your tenant's keys, newest first, revoked ones included; none of them shows its secret."""
    with services.sessions.begin() as session:
        rows, more = keys.page(session, caller.tenant, after=after, limit=limit)
    return KeyPage(data=[KeyView.of(row) for row in rows], has_more=more)


@router.delete(
    "/keys/{key_id}",
    operation_id="revoke_key",
    responses=responses(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID_REQUEST),
)
def revoke_key(
    services: CurrentServices,
    caller: Admin,
    key_id: Annotated[str, Path(description="Id of a key.", examples=["key_01jz5h4c8m2v9q7w3t6x0y1b2d"])],
) -> KeyView:
    """End a key at once and for ever; again is no error. A key cannot revoke itself."""
    return usecases.revoke(services, caller, key_id)


@router.get("/audit", operation_id="list_audit", responses=responses(Code.INVALID_REQUEST))
def list_audit(
    services: CurrentServices,
    caller: Admin,
    after: Annotated[
        int | None, Query(ge=0, le=LARGEST_ID, description="Id of an entry: those written before it.")
    ] = None,
    limit: Limit = 20,
) -> AuditPage:
    """Every change made with one of your tenant's keys, newest first: who, what, to what, when."""
    with services.sessions.begin() as session:
        rows, more = audit.page(session, caller.tenant, before=after, limit=limit)
    return AuditPage(data=[AuditView.of(row) for row in rows], has_more=more)
