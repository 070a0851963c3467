"""Use cases of webhooks: create, delete, rotate the secret, disable, enable, test."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from api.deps import Services
from api.schemas.webhooks import DeliveryView, WebhookRequest, WebhookSecret, WebhookView
from api.usecases.audited import audited
from core import webhooks
from core.access import audit
from core.access.audit import Caller
from core.addresses import Network, is_allowed, resolve_literal
from core.errors import Code, Flaw, ProblemError
from core.tables import WebhookDelivery

TEST = "test_webhook"
"""Name of the operation that sends a test message."""
MAX_TESTS, TEST_SECONDS = 20, 60
"""Maximum number of test messages of a tenant within this number of seconds."""


def create(services: Services, caller: Caller, body: WebhookRequest) -> WebhookSecret:
    """Create a webhook.

    Raises INVALID_REQUEST if its URL may not be called, and LIMIT_REACHED if the tenant has too many webhooks.
    """
    require_callable(body.url, services.settings.webhook_networks)
    return audited(services, caller, "create_webhook", WebhookSecret.of, webhooks.create, body.url, body.events)


def delete(services: Services, caller: Caller, webhook_id: str) -> WebhookView:
    """Delete a webhook and its deliveries."""
    return audited(services, caller, "delete_webhook", WebhookView.of, webhooks.remove, webhook_id)


def rotate(services: Services, caller: Caller, webhook_id: str) -> WebhookSecret:
    """Replace the secret of a webhook. For a day, messages are also signed with the old one."""
    return audited(services, caller, "rotate_webhook_secret", WebhookSecret.of, webhooks.rotate, webhook_id)


def disable(services: Services, caller: Caller, webhook_id: str) -> WebhookView:
    """Disable a webhook: nothing is sent to it until it is enabled. Idempotent."""
    return audited(services, caller, "disable_webhook", WebhookView.of, webhooks.disable, webhook_id)


def enable(services: Services, caller: Caller, webhook_id: str) -> WebhookView:
    """Enable a disabled webhook: messages are sent to it again. Idempotent."""
    return audited(services, caller, "enable_webhook", WebhookView.of, webhooks.enable, webhook_id)


def test(services: Services, caller: Caller, webhook_id: str) -> DeliveryView:
    """Queue a test message for a webhook.

    Raises CONFLICT if the webhook is disabled, and RATE_LIMITED after `MAX_TESTS` tests of the tenant within
    `TEST_SECONDS`.
    """
    return audited(services, caller, TEST, DeliveryView.of, _send_test, webhook_id)


def _send_test(session: Session, tenant: str, webhook_id: str) -> WebhookDelivery:
    audit.require_rate(session, tenant, TEST, most=MAX_TESTS, seconds=TEST_SECONDS)
    return webhooks.send_test(session, tenant, webhook_id)


def require_callable(url: str, allowed: Sequence[Network]) -> None:
    """Raise INVALID_REQUEST if messages to this URL would always be rejected.

    An IP address is checked now. A host name is resolved and checked at each delivery.
    """
    rule = None
    try:
        parts = urlsplit(url)
        address = resolve_literal(parts.hostname or "")
        if not parts.hostname or parts.port == 0:
            rule = "must have a host, and a port other than 0"
        elif parts.username is not None or parts.fragment:
            rule = "must not have a user name or a fragment (#…)"
        elif address is not None and not is_allowed(address, allowed):
            rule = f"must have a public address or one in SEFT_WEBHOOK_NETWORKS, not {address}"
    except ValueError as error:
        rule = f"must be a valid URL ({error})"
    if rule is not None:
        way_out = (
            "Give an http or https URL that the service can call. The operator can allow a private network with"
            " SEFT_WEBHOOK_NETWORKS."
        )
        flaw = Flaw("url", rule, repr(url), way_out)
        raise ProblemError(Code.INVALID_REQUEST, f"The `url` of a webhook {rule}.", (flaw,))
