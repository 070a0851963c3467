"""Webhooks: made, with their secret seen once, and changed; and what was delivered to each, and answered."""

from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError

from api.dashboard.render import go, page
from api.dashboard.visitors import Signed, Submitted, Visitor
from api.deps import CurrentServices, Services
from api.flaws import flaws_of_model
from api.routes import webhooks as routes
from api.schemas.webhooks import DeliveryView, WebhookRequest, WebhookView
from core import ids, webhooks
from core.access.audit import Caller
from core.errors import Code, ProblemError
from core.jobs.transitions import STATUS_EVENT_PREFIX
from core.states import Transition

LIMIT = 25
EVENTS = [f"{STATUS_EVENT_PREFIX}{move}" for move in Transition]
NOTHING: Mapping[str, object] = {"url": "", "events": []}
"""What the form holds at first."""
DEEDS: dict[str, Callable[[Services, Caller, str], object]] = {
    "test": routes.test_webhook,
    "enable": routes.enable_webhook,
    "disable": routes.disable_webhook,
}
"""What is done to a webhook and shows on its page."""

WebhookId = Annotated[str, Path()]

router = APIRouter(prefix="/webhooks")


@router.get("")
def list_webhooks(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """The page."""
    return _list(request, services, visitor)


@router.post("")
def create(request: Request, services: CurrentServices, visitor: Signed, form: Submitted) -> Response:
    """Make a webhook and show its secret, this once."""
    asked = {"url": str(form.get("url") or "").strip(), "events": form.getlist("events")}
    try:
        made = routes.create_webhook(services, visitor.caller, WebhookRequest.model_validate(asked), Response())
    except ValidationError as error:
        flaw = flaws_of_model(WebhookRequest, error)[0]
        return _list(request, services, visitor, asked=asked, problem=f"{flaw.param}: {flaw.rule}. {flaw.way_out}")
    except ProblemError as error:
        ways = " ".join(flaw.way_out for flaw in error.flaws)
        return _list(request, services, visitor, asked=asked, problem=f"{error.message}. {ways}")
    return _one(request, services, visitor, made.id, secret=made.secret)


@router.get("/{webhook_id}")
def show(
    request: Request,
    services: CurrentServices,
    visitor: Signed,
    webhook_id: WebhookId,
    *,
    after: str = "",
    refused: str = "",
) -> Response:
    """A webhook and what was delivered to it. `refused` names a deed that came too late."""
    return _one(request, services, visitor, webhook_id, after=after, refused=refused)


@router.post("/{webhook_id}/rotate")
def rotate(
    request: Request, services: CurrentServices, visitor: Signed, _: Submitted, webhook_id: WebhookId
) -> Response:
    """Give it a new secret, shown this once."""
    rotated = routes.rotate_webhook_secret(services, visitor.caller, webhook_id, Response())
    return _one(request, services, visitor, webhook_id, secret=rotated.secret)


@router.post("/{webhook_id}/delete")
def delete(services: CurrentServices, visitor: Signed, _: Submitted, webhook_id: WebhookId) -> Response:
    """Remove it with its deliveries."""
    routes.delete_webhook(services, visitor.caller, webhook_id)
    return go("/webhooks")


@router.post("/{webhook_id}/{deed}")
def do(services: CurrentServices, visitor: Signed, _: Submitted, webhook_id: WebhookId, deed: str) -> Response:
    """Test, enable or disable it, and show it again."""
    if deed not in DEEDS:
        raise ProblemError(Code.NOT_FOUND, "There is no such wish.")
    try:
        DEEDS[deed](services, visitor.caller, webhook_id)
    except ProblemError as error:
        if error.code is not Code.CONFLICT:
            raise
        return go(f"/webhooks/{webhook_id}?refused={deed}")
    return go(f"/webhooks/{webhook_id}")


def _list(
    request: Request,
    services: Services,
    visitor: Visitor,
    *,
    asked: Mapping[str, object] = NOTHING,
    problem: str = "",
) -> Response:
    with services.sessions.begin() as session:
        hooks = [WebhookView.of(row) for row in webhooks.list_all(session, visitor.caller.tenant)]
    return page(
        request,
        visitor,
        "webhooks.html",
        status=422 if problem else 200,
        hooks=hooks,
        events=EVENTS,
        asked=asked,
        problem=problem,
    )


def _one(
    request: Request,
    services: Services,
    visitor: Visitor,
    webhook_id: str,
    *,
    after: str = "",
    refused: str = "",
    secret: str = "",
) -> Response:
    cursor = after if ids.is_id("msg", after) else None
    with services.sessions.begin() as session:
        hook = WebhookView.of(webhooks.get(session, visitor.caller.tenant, webhook_id))
        rows, more = webhooks.deliveries(session, hook.id, after=cursor, limit=LIMIT)
        deliveries = [DeliveryView.of(row) for row in rows]
    answer = page(
        request,
        visitor,
        "webhook.html",
        hook=hook,
        deliveries=deliveries,
        more=more,
        after=cursor,
        refused=refused if refused in DEEDS else "",
        secret=secret,
    )
    if secret:
        answer.headers["Cache-Control"] = "no-store"
    return answer
