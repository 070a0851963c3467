"""Webhooks: URLs that receive the events of jobs."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api.deps import Auth, CurrentServices, JsonRoute, Limit
from api.errors import BODY, responses
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

WebhookId = Annotated[str, Path(description="Webhook id.", examples=[HOOK_ID])]
ERRORS = responses(Code.NOT_FOUND)

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=JsonRoute)


@router.post("", status_code=HTTPStatus.CREATED, responses=responses(*BODY, Code.LIMIT_REACHED))
def create_webhook(services: CurrentServices, caller: Auth, body: WebhookRequest, response: Response) -> WebhookSecret:
    """Create a webhook: a URL that receives the events of your jobs. Only this response contains its secret."""
    view = usecases.create(services, caller, body)
    response.headers["Location"] = f"/webhooks/{view.id}"
    response.headers["Cache-Control"] = "no-store"
    return view


@router.get("")
def list_webhooks(services: CurrentServices, caller: Auth) -> WebhookList:
    """List your webhooks, newest first."""
    with services.sessions.begin() as session:
        return WebhookList(data=[WebhookView.of(row) for row in webhooks.list_all(session, caller.tenant)])


@router.get("/{webhook_id}", responses=ERRORS)
def get_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Get one webhook."""
    with services.sessions.begin() as session:
        return WebhookView.of(webhooks.get(session, caller.tenant, webhook_id))


@router.delete("/{webhook_id}", responses=ERRORS)
def delete_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Delete a webhook and its deliveries. A message that is already being sent may still arrive."""
    return usecases.delete(services, caller, webhook_id)


@router.post("/{webhook_id}/rotate", responses=ERRORS)
def rotate_webhook_secret(
    services: CurrentServices, caller: Auth, webhook_id: WebhookId, response: Response
) -> WebhookSecret:
    """Replace the secret of a webhook. For one day, each message is signed with both the old and the new secret."""
    response.headers["Cache-Control"] = "no-store"
    return usecases.rotate(services, caller, webhook_id)


@router.post("/{webhook_id}/disable", responses=ERRORS)
def disable_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Disable a webhook. Pending messages wait until it is enabled. New events create no messages. Idempotent."""
    return usecases.disable(services, caller, webhook_id)


@router.post("/{webhook_id}/enable", responses=ERRORS)
def enable_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> WebhookView:
    """Enable a webhook that you disabled, or that was disabled after too many failures. Idempotent."""
    return usecases.enable(services, caller, webhook_id)


@router.post("/{webhook_id}/test", status_code=HTTPStatus.ACCEPTED, responses=responses(Code.NOT_FOUND, Code.CONFLICT))
def test_webhook(services: CurrentServices, caller: Auth, webhook_id: WebhookId) -> DeliveryView:
    """Send a test message of type `webhook.test`. The deliveries show the result."""
    return usecases.test(services, caller, webhook_id)


@router.get("/{webhook_id}/deliveries", responses=ERRORS)
def list_webhook_deliveries(
    services: CurrentServices,
    caller: Auth,
    webhook_id: WebhookId,
    after: Annotated[
        str | None, Query(pattern=ids.pattern("msg"), description="Id of a delivery. The page starts after it.")
    ] = None,
    limit: Limit = 20,
) -> DeliveryPage:
    """List the messages of a webhook, sent and pending, with the responses, newest first. Kept for 30 days."""
    with services.sessions.begin() as session:
        hook = webhooks.get(session, caller.tenant, webhook_id)
        rows, more = webhooks.deliveries(session, hook.id, after=after, limit=limit)
    return DeliveryPage(data=[DeliveryView.of(row) for row in rows], has_more=more)
