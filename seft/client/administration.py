"""Operations about the tenant itself: keys, audit log, hub token and webhooks."""

from collections.abc import Sequence
from typing import cast

from seft.client.calls import Calls, path_of
from seft.client.responses import AuditEntry, Delivery, HubToken, Key, Webhook
from seft.client.steps import Flow, Request, Row, Steps, flow, operation


class Administration(Calls):
    """The methods of `Client` and `AsyncClient` that are not about jobs, datasets and models."""

    @operation
    def create_key(self, name: str, scope: str = "write") -> Steps[Key]:
        """Create an API key of scope `read`, `write` or `admin`. Only this response has its `secret`."""
        request = Request("POST", "/keys", json={"name": name, "scope": scope})
        return cast("Key", (yield from self._call_once(request)))

    @flow
    def api_keys(self) -> Flow[Key]:
        """List the tenant's API keys, newest first, including revoked keys."""
        yield from self._pages("/keys", "id", {})

    @operation
    def revoke_key(self, key_id: str) -> Steps[Key]:
        """Revoke an API key immediately. Idempotent."""
        return cast("Key", (yield from self._call(Request("DELETE", path_of("keys", key_id)))))

    @flow
    def audit(self) -> Flow[AuditEntry]:
        """List every change that was made with one of the tenant's keys, and expired datasets, newest first."""
        yield from self._pages("/audit", "id", {})

    @operation
    def hub_token(self) -> Steps[HubToken]:
        """Return owner and date of the tenant's hub token. Raises ApiProblem `not_found` if none is stored."""
        return cast("HubToken", (yield from self._get("/hub-token")))

    @operation
    def put_hub_token(self, token: str) -> Steps[HubToken]:
        """Store the tenant's hub token, which gives access to private models and datasets. It is never shown again."""
        return cast("HubToken", (yield from self._call(Request("PUT", "/hub-token", json={"token": token}))))

    @operation
    def delete_hub_token(self) -> Steps[HubToken]:
        """Delete the tenant's token for the Hugging Face hub."""
        return cast("HubToken", (yield from self._delete("/hub-token")))

    @operation
    def create_webhook(self, url: str, events: Sequence[str] = ()) -> Steps[Webhook]:
        """Create a webhook for these event types, or for all. Only this response contains its signing `secret`."""
        request = Request("POST", "/webhooks", json={"url": url, "events": list(events)})
        return cast("Webhook", (yield from self._call_once(request)))

    @flow
    def webhooks(self) -> Flow[Webhook]:
        """List your webhooks, newest first."""
        yield from map(Row, (yield from self._get("/webhooks"))["data"])

    @operation
    def delete_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Delete a webhook and its deliveries."""
        return cast("Webhook", (yield from self._delete(path_of("webhooks", webhook_id))))

    @operation
    def rotate_webhook_secret(self, webhook_id: str) -> Steps[Webhook]:
        """Create a new `secret`. For one day messages carry signatures of the old and the new secret."""
        request = Request("POST", path_of("webhooks", webhook_id, "rotate"))
        return cast("Webhook", (yield from self._call_once(request)))

    @operation
    def disable_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Stop deliveries until the webhook is enabled again. Idempotent."""
        return cast("Webhook", (yield from self._call(Request("POST", path_of("webhooks", webhook_id, "disable")))))

    @operation
    def enable_webhook(self, webhook_id: str) -> Steps[Webhook]:
        """Resume deliveries of a disabled webhook. Idempotent."""
        return cast("Webhook", (yield from self._call(Request("POST", path_of("webhooks", webhook_id, "enable")))))

    @operation
    def test_webhook(self, webhook_id: str) -> Steps[Delivery]:
        """Send a test message to a webhook. Its result appears in `webhook_deliveries`."""
        request = Request("POST", path_of("webhooks", webhook_id, "test"))
        return cast("Delivery", (yield from self._call_once(request)))

    @flow
    def webhook_deliveries(self, webhook_id: str) -> Flow[Delivery]:
        """List the sent and pending messages of a webhook, newest first."""
        yield from self._pages(path_of("webhooks", webhook_id, "deliveries"), "id", {})
