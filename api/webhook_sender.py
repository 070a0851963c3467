"""Deliver webhooks, in a background thread of every API process.

Each pending delivery is a row in the database. A process claims a row before it sends the message, so no two
processes send it at the same time. A delivery is a POST request, signed as standardwebhooks.com specifies. It
connects to the address that was checked and follows no redirects. It ends after `CALL_SECONDS`, whatever it waits for:
the name server, the connection, TLS, or a receiver that sends a byte now and then.

Deliveries are asyncio tasks of one loop. A slow receiver occupies one of the `TENANT_CALLS` tasks of its tenant. The
tenant with the fewest tasks is served first, and `RESERVED_CALLS` tasks are kept for tenants that have none.
"""

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections import Counter
from collections.abc import Sequence
from functools import cache
from urllib.parse import urlsplit

import anyio
import httpx2
import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import override

from core import __version__, webhooks
from core.addresses import AddressError, Network, Resolver, resolve, resolve_public
from core.poller import POLL_SECONDS, Poller
from core.webhooks import DeliveryResult, PendingDelivery

CALL_SECONDS = 15.0
"""Longest duration of one delivery, in seconds."""
CALLS = 64
"""Number of deliveries that one process sends at the same time."""
TENANT_CALLS = 8
"""Maximum number of deliveries of one tenant among these `CALLS`. A webhook has at most one of them."""
RESERVED_CALLS = CALLS // 4
"""Number of the `CALLS` that are reserved for tenants without a running delivery."""
SHOWN_BYTES = 1024
"""Bytes of a response body that are stored in the log of the delivery."""
ADDRESS_REFUSED = "The host cannot be resolved, or an address of it is neither public nor in SEFT_WEBHOOK_NETWORKS."
"""One text for all reasons, because different texts would show the names and addresses of the operator's network."""

log = structlog.get_logger(__name__)


class WebhookSender(Poller):
    """The background thread that sends due deliveries."""

    def __init__(
        self, sessions: sessionmaker[Session], allowed: Sequence[Network], resolver: Resolver = resolve
    ) -> None:
        super().__init__("webhook_sender")
        self.sessions, self.allowed, self.resolver = sessions, allowed, resolver

    @override
    def poll(self) -> int:
        """Send deliveries until none is due. Return the number sent."""
        due = self._claim([])
        return asyncio.run(self._send(due)) if due else 0

    async def _send(self, due: list[PendingDelivery]) -> int:
        """Send these deliveries and all that become due meanwhile."""
        sent = 0
        running: dict[asyncio.Task[None], PendingDelivery] = {}
        while due or running:
            running |= {asyncio.create_task(self._deliver(delivery)): delivery for delivery in due}
            sent += len(due)
            if not due:
                await asyncio.wait(running, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task.done()]:
                del running[task]
            try:
                due = await run_sync(self._claim, list(running.values()))
            except SQLAlchemyError as error:  # must not cancel the deliveries that run
                log.warning("webhook.claim_failed", error=str(error))
                due = []
        return sent

    def _claim(self, running: Sequence[PendingDelivery]) -> list[PendingDelivery]:
        """Claim due deliveries, at most one of each tenant. `running` are the deliveries that this process sends."""
        free = CALLS - len(running)
        if free <= 0:
            return []
        calls = Counter(delivery.tenant for delivery in running)
        busy = [delivery.webhook_id for delivery in running]
        with self.sessions.begin() as session:
            first = webhooks.claim(session, free, busy=busy, full=list(calls))
            free -= len(first) + RESERVED_CALLS
            if free <= 0 or not calls:
                return first
            full = [delivery.tenant for delivery in first]
            full += [tenant for tenant, count in calls.items() if count >= TENANT_CALLS]
            return first + webhooks.claim(session, free, busy=busy, full=full, calls=calls)

    async def _deliver(self, delivery: PendingDelivery) -> None:
        try:
            result = await call(delivery, self.allowed, self.resolver)
        except Exception:  # without a result, the delivery would be claimed again without end
            log.exception("webhook.call_failed", delivery=delivery.id)
            result = DeliveryResult(None, "An internal error of the service prevented this delivery.")
        try:
            await run_sync(self._record, delivery, result)
        except Exception as error:
            log.warning("webhook.result_not_saved", delivery=delivery.id, error=str(error))

    def _record(self, delivery: PendingDelivery, result: DeliveryResult) -> None:
        with self.sessions.begin() as session:
            webhooks.record_result(session, delivery, result)
        log.info(
            "webhook.called",
            webhook=delivery.webhook_id,
            delivery=delivery.id,
            number=delivery.number,
            status=result.status,
        )


async def call(delivery: PendingDelivery, allowed: Sequence[Network], resolver: Resolver = resolve) -> DeliveryResult:
    """Send one delivery and return the result. After a failure, the result has an error text and no HTTP status."""
    try:
        with anyio.fail_after(CALL_SECONDS):
            return await _post(delivery, allowed, resolver)
    except AddressError as error:
        log.info("webhook.address_refused", webhook=delivery.webhook_id, reason=str(error))  # for the operator only
        return DeliveryResult(None, ADDRESS_REFUSED)
    except (TimeoutError, httpx2.TimeoutException):
        return DeliveryResult(None, f"The receiver did not respond in time. A delivery may take {CALL_SECONDS:g} s.")
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        return DeliveryResult(None, f"{type(error).__name__}: {error}"[:SHOWN_BYTES].replace("\0", "\ufffd"))


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """Return the Standard Webhooks signature: HMAC-SHA256 of the id, the timestamp and the body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


async def _post(delivery: PendingDelivery, allowed: Sequence[Network], resolver: Resolver) -> DeliveryResult:
    url = urlsplit(delivery.url)
    host = url.hostname or ""
    # Every call has a thread of its own, because a name server that does not answer holds it for a long time.
    thread, step_seconds = CapacityLimiter(1), CALL_SECONDS / 3
    with anyio.fail_after(step_seconds):
        address = await run_sync(resolve_public, host, allowed, resolver, abandon_on_cancel=True, limiter=thread)
    path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
    # The URL contains the address that was checked. TLS verifies the certificate against the host name.
    target = httpx2.URL(scheme=url.scheme, host=address, port=url.port, raw_path=path.encode())
    headers = {"Host": url.netloc, **_headers(delivery)}
    # The timeout covers the connection and TLS. Without it, a cancelled TLS handshake would leave its socket open.
    timeout = httpx2.Timeout(None, connect=step_seconds)
    async with (
        httpx2.AsyncClient(verify=_tls(), trust_env=False, timeout=timeout) as client,
        client.stream(
            "POST", target, content=delivery.body.encode(), headers=headers, extensions={"sni_hostname": host}
        ) as response,
    ):
        content = b""
        async for block in response.aiter_raw():
            content += block
            if len(content) >= SHOWN_BYTES:
                break
        text = content[:SHOWN_BYTES].decode(errors="replace").replace("\0", "\ufffd")
        return DeliveryResult(response.status_code, text)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _headers(delivery: PendingDelivery) -> dict[str, str]:
    now = int(delivery.claimed_at.timestamp())
    return {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": f"seft/{__version__}",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(sign(secret, delivery.id, now, delivery.body) for secret in delivery.secrets),
    }
