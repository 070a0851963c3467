"""The page of API keys and the audit log, for administrators: create, revoke and list keys."""

from typing import get_args

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.dashboard.render import go, page
from api.dashboard.visitors import Administrator, Submitted, Visitor
from api.deps import CurrentServices, Services
from api.errors import TABLE
from api.flaws import flaws_of_model
from api.schemas.keys import AuditView, KeyRequest, KeyView, TenantScope
from api.usecases import keys as usecases
from core import ids
from core.access import audit, keys
from core.errors import ProblemError

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
        flaw = flaws_of_model(KeyRequest, error)[0]
        return _page(request, services, visitor, problem=f"{flaw.param}: {flaw.rule}. {flaw.way_out}", status=422)
    key = usecases.create(services, visitor.caller, body)
    answer = _page(request, services, visitor, secret=key.secret)
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get("/{key_id}")
def show_key(_: Administrator) -> Response:
    """Show the list, because a key has no page of its own."""
    return go("/keys")


@router.post("/{key_id}/revoke")
def revoke_key(
    request: Request, services: CurrentServices, visitor: Administrator, _: Submitted, key_id: str
) -> Response:
    """Revoke a key."""
    try:
        usecases.revoke(services, visitor.caller, key_id)
    except ProblemError as error:
        return _page(request, services, visitor, problem=error.message, status=int(TABLE[error.code][0]))
    return go("/keys")


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
        rows, more = keys.page(
            session, visitor.caller.tenant, after=after if ids.is_id("key", after) else None, limit=LIMIT
        )
        changes, older_changes = audit.page(session, visitor.caller.tenant, after=None, limit=AUDIT_LIMIT)
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
        secret=secret,
        problem=problem,
    )
