"""API keys and the audit log. Every operation here needs a key of scope `admin`."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api.deps import Admin, CurrentServices, JsonRoute, Limit
from api.errors import BODY, responses
from api.schemas.keys import AuditPage, AuditView, KeyPage, KeyRequest, KeySecret, KeyView
from api.schemas.shared import LARGEST_ID
from api.usecases import keys as usecases
from core import ids
from core.access import audit, keys
from core.errors import Code

router = APIRouter(tags=["keys"], route_class=JsonRoute)


@router.post("/keys", status_code=HTTPStatus.CREATED, responses=responses(*BODY))
def create_key(services: CurrentServices, caller: Admin, body: KeyRequest, response: Response) -> KeySecret:
    """Create an API key for your tenant. Only this response shows the key."""
    response.headers["Cache-Control"] = "no-store"
    return usecases.create(services, caller, body)


@router.get("/keys")
def list_keys(
    services: CurrentServices,
    caller: Admin,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("key"), description="Id of a key. The page starts after it.")
    ] = None,
    limit: Limit = 20,
) -> KeyPage:
    """List your tenant's API keys, newest first, revoked ones included. The keys are listed without their secrets."""
    with services.sessions.begin() as session:
        rows, more = keys.page(session, caller.tenant, after=after, limit=limit)
    return KeyPage(data=[KeyView.of(row) for row in rows], has_more=more)


@router.delete("/keys/{key_id}", responses=responses(Code.NOT_FOUND, Code.CONFLICT))
def revoke_key(
    services: CurrentServices,
    caller: Admin,
    key_id: Annotated[str, Path(description="Key id.", examples=["key_01jz5h4c8m2v9q7w3t6x0y1b2d"])],
) -> KeyView:
    """Revoke an API key immediately and permanently. A key cannot revoke itself. Idempotent."""
    return usecases.revoke(services, caller, key_id)


@router.get("/audit")
def list_audit(
    services: CurrentServices,
    caller: Admin,
    after: Annotated[
        int | None, Query(ge=0, le=LARGEST_ID, description="Id of an entry. The page starts after it.")
    ] = None,
    limit: Limit = 20,
) -> AuditPage:
    """List the changes that were made with your tenant's keys, and expired datasets, newest first."""
    with services.sessions.begin() as session:
        rows, more = audit.page(session, caller.tenant, after=after, limit=limit)
    return AuditPage(data=[AuditView.of(row) for row in rows], has_more=more)
