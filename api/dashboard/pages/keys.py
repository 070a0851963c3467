"""The page of API keys, the hub token and the audit log, for administrators."""

from typing import get_args

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.dashboard.render import go, page
from api.dashboard.visitors import Administrator, Submitted, Visitor
from api.deps import CurrentServices, Services
from api.errors import TABLE
from api.flaws import first_flaw
from api.schemas.keys import AuditView, KeyRequest, KeyView, TenantScope
from api.schemas.models import HubTokenRequest, HubTokenView
from api.usecases import hub_token
from api.usecases import keys as usecases
from core import ids
from core.access import audit, keys
from core.errors import ProblemError
from core.tables import HubToken

LIMIT = 100
AUDIT_LIMIT = 20

router = APIRouter(prefix="/keys")


@router.get("")
def list_keys(request: Request, services: CurrentServices, visitor: Administrator, after: str = "") -> Response:
    """Show the keys, newest first, and the audit log. `after` is the id of a key; the page starts after it."""
    return _page(request, services, visitor, after=after)


@router.post("")
def create_key(request: Request, services: CurrentServices, visitor: Administrator, form: Submitted) -> Response:
    """Create a key and show it. No later response shows it again."""
    try:
        body = KeyRequest.model_validate({"name": form.get("name"), "scope": form.get("scope")})
    except ValidationError as error:
        return _page(request, services, visitor, problem=first_flaw(KeyRequest, error), status=422)
    key = usecases.create(services, visitor.caller, body)
    answer = _page(request, services, visitor, secret=key.secret)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("/hub-token")
def store_hub_token(request: Request, services: CurrentServices, visitor: Administrator, form: Submitted) -> Response:
    """Store the tenant's token for the model hub."""
    try:
        body = HubTokenRequest.model_validate({"token": str(form.get("token", "")).strip()})
        hub_token.put(services, visitor.caller, body)
    except ValidationError as error:
        return _page(request, services, visitor, problem=first_flaw(HubTokenRequest, error), status=422)
    except ProblemError as error:
        return _problem_page(request, services, visitor, error)
    return go("/keys")


@router.post("/hub-token/delete")
def delete_hub_token(request: Request, services: CurrentServices, visitor: Administrator, _: Submitted) -> Response:
    """Delete the tenant's token for the model hub."""
    try:
        hub_token.delete(services, visitor.caller)
    except ProblemError as error:
        return _problem_page(request, services, visitor, error)
    return go("/keys")


@router.get("/{key_id}")
def show_key(_: Administrator) -> Response:
    """Show the list, because neither a key nor the hub token has a page of its own."""
    return go("/keys")


@router.post("/{key_id}/revoke")
def revoke_key(
    request: Request, services: CurrentServices, visitor: Administrator, _: Submitted, key_id: str
) -> Response:
    """Revoke a key."""
    try:
        usecases.revoke(services, visitor.caller, key_id)
    except ProblemError as error:
        return _problem_page(request, services, visitor, error)
    return go("/keys")


def _problem_page(request: Request, services: Services, visitor: Visitor, error: ProblemError) -> Response:
    return _page(request, services, visitor, problem=error.message, status=int(TABLE[error.code][0]))


def _page(
    request: Request,
    services: Services,
    visitor: Visitor,
    *,
    after: str = "",
    secret: str = "",
    problem: str = "",
    status: int = 200,
) -> Response:
    with services.sessions.begin() as session:
        stored = session.get(HubToken, visitor.caller.tenant)
        rows, more = keys.page(
            session, visitor.caller.tenant, after=after if ids.is_id("key", after) else None, limit=LIMIT
        )
        changes, older_changes = audit.page(session, visitor.caller.tenant, after=None, limit=AUDIT_LIMIT)
        token = HubTokenView.of(stored) if stored else None
    return page(
        request,
        visitor,
        "keys.html",
        status=status,
        keys=[KeyView.of(row) for row in rows],
        more=more,
        changes=[AuditView.of(row) for row in changes],
        older_changes=older_changes,
        scopes=get_args(TenantScope),
        hub_token=token,
        secret=secret,
        problem=problem,
    )
