"""Webhooks: addresses that are told what happens to jobs."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Path, Query, Response

from api.deps import Auth, CurrentServices, Limit, RequireContentType
from api.errors import BODY, responses
from api.limits import JsonRoute
from api.schemas.webhooks import (
    HOOK_ID,
    DeliveryPage,
    DeliveryView,
    WebhookList,
    WebhookRequest,
    WebhookSecret,
    WebhookView,
)
from core import ids, webhooks
from core.access import audit
from core.addresses import Network, is_allowed, resolve_literal
from core.errors import Code, Flaw, ProblemError

WebhookId = Annotated[str, Path(description="Id of a webhook.", examples=[HOOK_ID])]
REFUSALS = responses(Code.NOT_FOUND, Code.INVALID_REQUEST)

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=JsonRoute)


@router.post(
    "",
    operation_id="create_webhook",
    status_code=HTTPStatus.CREATED,
    dependencies=[Depends(RequireContentType("application/json"))],
    responses=responses(*BODY, Code.CONFLICT),
)
def create_webhook(services: CurrentServices, caller: Auth, body: WebhookRequest, response: Response) -> WebhookSecret:
    """Have an address told what happens to your jobs. The answer shows the secret, this once."""
    _check_url(body.url, services.settings.webhook_networks)
    with services.sessions.begin() as session:
        row = webhooks.create(session, caller.tenant, body.url, body.events)
        audit.record(session, caller, "create_webhook", row.id)
    response.headers["Location"] = f"/webhooks/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return WebhookSecret.of(row)


@router.get("", operation_id="list_webhooks")
def list_webhooks(services: CurrentServices, caller: Auth) -> WebhookList:
    """Your webhooks, newest first."""
    with services.sessions.begin() as session:
        return WebhookList(data=[WebhookView.of(row) for row in webhooks.list_all(session, caller.tenant)])


@router.get("/{webhook_id}", operation_id="get_webhook", responses=REFUSALS)
def get_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """One webhook."""
    with services.sessions.begin() as session:
        return WebhookView.of(webhooks.get(session, caller.tenant, webhook_id))


@router.delete("/{webhook_id}", operation_id="delete_webhook", responses=REFUSALS)
def delete_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Remove a webhook and its deliveries; what is being sent at this moment may still arrive."""
    with services.sessions.begin() as session:
        row = webhooks.remove(session, caller.tenant, webhook_id)
        audit.record(session, caller, "delete_webhook", row.id)
        return WebhookView.of(row)


@router.post("/{webhook_id}/rotate", operation_id="rotate_webhook_secret", responses=REFUSALS)
def rotate_webhook_secret(
    services: CurrentServices, caller: Auth, webhook_id: WebhookId, response: Response
) -> WebhookSecret:
    """Get a new secret. For a day the one before signs as well, in the same header."""
    response.headers["Cache-Control"] = "no-store"
    with services.sessions.begin() as session:
        row = webhooks.rotate(session, caller.tenant, webhook_id)
        audit.record(session, caller, "rotate_webhook_secret", row.id)
        return WebhookSecret.of(row)


@router.post("/{webhook_id}/disable", operation_id="disable_webhook", responses=REFUSALS)
def disable_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Deliver nothing until it is enabled again, which takes up what is owed now; again is no error."""
    with services.sessions.begin() as session:
        row = webhooks.disable(session, caller.tenant, webhook_id)
        audit.record(session, caller, "disable_webhook", row.id)
        return WebhookView.of(row)


@router.post("/{webhook_id}/enable", operation_id="enable_webhook", responses=REFUSALS)
def enable_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Take up deliveries again after a webhook was disabled, by you or because it only failed; again is no error."""
    with services.sessions.begin() as session:
        row = webhooks.enable(session, caller.tenant, webhook_id)
        audit.record(session, caller, "enable_webhook", row.id)
        return WebhookView.of(row)


@router.post(
    "/{webhook_id}/test",
    operation_id="test_webhook",
    status_code=HTTPStatus.ACCEPTED,
    responses=responses(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID_REQUEST),
)
def test_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> DeliveryView:
    """Send a message that tells of nothing, of type `webhook.test`. What came of it stands in the deliveries."""
    with services.sessions.begin() as session:
        row = webhooks.send_test(session, caller.tenant, webhook_id)
        audit.record(session, caller, "test_webhook", row.id)
        return DeliveryView.of(row)


@router.get("/{webhook_id}/deliveries", operation_id="list_webhook_deliveries", responses=REFUSALS)
def list_webhook_deliveries(
    services: CurrentServices,
    caller: Auth,
    webhook_id: WebhookId,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("msg"), description="Id of a delivery: those made before it.")
    ] = None,
    limit: Limit = 20,
) -> DeliveryPage:
    """What was sent to a webhook, what is still owed to it, and what it answered; newest first, for thirty days."""
    with services.sessions.begin() as session:
        hook = webhooks.get(session, caller.tenant, webhook_id)
        rows, more = webhooks.deliveries(session, hook.id, after=after, limit=limit)
    return DeliveryPage(data=[DeliveryView.of(row) for row in rows], has_more=more)


def _check_url(url: str, allowed: Sequence[Network]) -> None:
    """INVALID_REQUEST for an address that will never be called. What a name leads to is judged at every call."""
    rule = None
    try:
        parts = urlsplit(url)
        address = resolve_literal(parts.hostname or "")
        if not parts.hostname or parts.port == 0:
            rule = "must name a host, and no port 0"
        elif parts.username is not None or parts.fragment:
            rule = "must have neither a user nor a fragment"
        elif address is not None and not is_allowed(address, allowed):
            rule = f"must be public, and leads to {address}"
    except ValueError as error:
        rule = f"must be a URL: {error}"
    if rule is not None:
        flaw = Flaw("url", rule, repr(url), "Give an address that can be reached from everywhere, by http or https.")
        raise ProblemError(Code.INVALID_REQUEST, f"url: {rule}", (flaw,))
