"""The pages of webhooks: create, change and delete them, and show their deliveries with the responses."""

from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError

from api.dashboard.render import go, go_after, page
from api.dashboard.visitors import Signed, Submitted, Visitor
from api.deps import CurrentServices, Services
from api.flaws import first_flaw
from api.schemas.webhooks import EVENTS, DeliveryView, WebhookRequest, WebhookView
from api.usecases import webhooks as usecases
from core import ids, webhooks
from core.access.audit import Caller
from core.errors import ProblemError

LIMIT = 25
EMPTY_FORM: Mapping[str, object] = {"url": "", "events": []}
ACTIONS: dict[str, Callable[[Services, Caller, str], object]] = {
    "test": usecases.test,
    "enable": usecases.enable,
    "disable": usecases.disable,
}
"""Actions after which a webhook's page is shown again. The name is the last part of the URL."""

WebhookId = Annotated[str, Path()]

router = APIRouter(prefix="/webhooks")


@router.get("")
def list_webhooks(request: Request, services: CurrentServices, visitor: Signed) -> Response:
    """Show the list."""
    return _list(request, services, visitor)


@router.post("")
def create(request: Request, services: CurrentServices, visitor: Signed, form: Submitted) -> Response:
    """Create a webhook and show its secret. No later response shows the secret again."""
    values = {"url": str(form.get("url") or "").strip(), "events": form.getlist("events")}
    try:
        webhook = usecases.create(services, visitor.caller, WebhookRequest.model_validate(values))
    except ValidationError as error:
        return _list(request, services, visitor, values=values, problem=first_flaw(WebhookRequest, error))
    except ProblemError as error:
        fixes = " ".join(flaw.way_out for flaw in error.flaws)
        return _list(request, services, visitor, values=values, problem=f"{error.message} {fixes}".strip())
    return _one(request, services, visitor, webhook.id, secret=webhook.secret)


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
    """Show a webhook and its deliveries. `refused` is the name of an action that has just been rejected."""
    return _one(request, services, visitor, webhook_id, after=after, refused=refused)


@router.post("/{webhook_id}/rotate")
def rotate(
    request: Request, services: CurrentServices, visitor: Signed, _: Submitted, webhook_id: WebhookId
) -> Response:
    """Replace the secret and show the new one. No later response shows it again."""
    rotated = usecases.rotate(services, visitor.caller, webhook_id)
    return _one(request, services, visitor, webhook_id, secret=rotated.secret)


@router.post("/{webhook_id}/delete")
def delete(services: CurrentServices, visitor: Signed, _: Submitted, webhook_id: WebhookId) -> Response:
    """Delete the webhook and its deliveries."""
    usecases.delete(services, visitor.caller, webhook_id)
    return go("/webhooks")


@router.post("/{webhook_id}/{action}")
def run_action(
    services: CurrentServices, visitor: Signed, _: Submitted, webhook_id: WebhookId, action: str
) -> Response:
    """Run one of `ACTIONS` on the webhook, then show its page again."""
    path = f"/webhooks/{webhook_id}"
    return go_after(action, ACTIONS, path, lambda: ACTIONS[action](services, visitor.caller, webhook_id))


def _list(
    request: Request,
    services: Services,
    visitor: Visitor,
    *,
    values: Mapping[str, object] = EMPTY_FORM,
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
        values=values,
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
        refused=refused if refused in ACTIONS else "",
        secret=secret,
    )
    if secret:
        answer.headers["Cache-Control"] = "no-store"
    return answer
