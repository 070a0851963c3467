"""Webhooks: addresses that are told what happens to jobs."""

from http import HTTPStatus
from typing import Annotated

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
from api.usecases import webhooks as usecases
from core import ids, webhooks
from core.errors import Code

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
    view = usecases.create(services, caller, body)
    response.headers["Location"] = f"/webhooks/{view.id}"
    response.headers["Cache-Control"] = "no-store"
    return view


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
    return usecases.delete(services, caller, webhook_id)


@router.post("/{webhook_id}/rotate", operation_id="rotate_webhook_secret", responses=REFUSALS)
def rotate_webhook_secret(
    services: CurrentServices, caller: Auth, webhook_id: WebhookId, response: Response
) -> WebhookSecret:
    """Get a new secret. For a day the one before signs as well, in the same header."""
    response.headers["Cache-Control"] = "no-store"
    return usecases.rotate(services, caller, webhook_id)


@router.post("/{webhook_id}/disable", operation_id="disable_webhook", responses=REFUSALS)
def disable_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Deliver nothing until it is enabled again, which takes up what is owed now; again is no error."""
    return usecases.disable(services, caller, webhook_id)


@router.post("/{webhook_id}/enable", operation_id="enable_webhook", responses=REFUSALS)
def enable_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Take up deliveries again after a webhook was disabled, by you or because it only failed; again is no error."""
    return usecases.enable(services, caller, webhook_id)


@router.post(
    "/{webhook_id}/test",
    operation_id="test_webhook",
    status_code=HTTPStatus.ACCEPTED,
    responses=responses(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID_REQUEST),
)
def test_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> DeliveryView:
    """Send a message that tells of nothing, of type `webhook.test`. What came of it stands in the deliveries."""
    return usecases.test(services, caller, webhook_id)


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
