"""Deliver webhooks, in a background thread of every API process.

Each pending delivery is a row in the database. A process claims a row before it sends the message, so no two
processes send it at the same time. A delivery is a POST request, signed as standardwebhooks.com specifies. It
connects to the address that was checked, follows no redirects, and ends after `CALL_SECONDS` even if the receiver is
still sending.
"""

import base64
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import structlog
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import override

from api.poller import Poller
from core import __version__, webhooks
from core.addresses import AddressError, Network, Resolver, resolve, resolve_public
from core.webhooks import DeliveryResult, PendingDelivery

CALL_SECONDS = 15.0
"""Longest duration of one delivery, in seconds."""
CALLS = 8
"""Number of deliveries that one process sends at the same time."""
SHOWN_BYTES = 1024
"""Bytes of a response body that are stored in the log of the delivery."""

log = structlog.get_logger(__name__)


class Courier(Poller):
    """The background thread that sends due deliveries."""

    def __init__(
        self, sessions: sessionmaker[Session], allowed: Sequence[Network], resolver: Resolver = resolve
    ) -> None:
        super().__init__("courier")
        self.sessions, self.allowed, self.resolver = sessions, allowed, resolver
        self.pool = ThreadPoolExecutor(CALLS, "courier")

    @override
    def poll(self) -> int:
        """Send up to `CALLS` due deliveries, at most one per webhook. Return the number sent."""
        with self.sessions.begin() as session:
            deliveries = webhooks.claim(session, CALLS)
        list(self.pool.map(self._deliver, deliveries))
        return len(deliveries)

    @override
    def clean_up(self) -> None:
        with self.sessions.begin() as session:
            webhooks.delete_old(session)

    def _deliver(self, delivery: PendingDelivery) -> None:
        answer = call(delivery, self.allowed, self.resolver)
        with self.sessions.begin() as session:
            webhooks.record_result(session, delivery, answer)
        log.info(
            "webhook.called",
            webhook=delivery.webhook_id,
            delivery=delivery.id,
            number=delivery.number,
            status=answer.status,
        )


def call(delivery: PendingDelivery, allowed: Sequence[Network], resolver: Resolver = resolve) -> DeliveryResult:
    """Send one delivery and return the result. After a failure, the result has an error text and no HTTP status."""
    try:
        return _post(delivery, allowed, resolver)
    except AddressError as error:
        return DeliveryResult(None, str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return DeliveryResult(None, f"{type(error).__name__}: {error}"[:SHOWN_BYTES])


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """Return the Standard Webhooks signature: HMAC-SHA256 of the id, the timestamp and the body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _post(delivery: PendingDelivery, allowed: Sequence[Network], resolver: Resolver) -> DeliveryResult:
    url = urlsplit(delivery.url)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    address = resolve_public(host, allowed, resolver)
    connection = _Connection(host, port, address, secure=url.scheme == "https")
    # The socket's own timeout starts again with every byte; a receiver that drips would never reach it.
    deadline = threading.Timer(CALL_SECONDS, connection.abort)
    deadline.start()
    try:
        path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
        connection.request("POST", path, delivery.body.encode(), _headers(delivery))
        response = connection.getresponse()
        return DeliveryResult(
            response.status, response.read(SHOWN_BYTES).decode(errors="replace").replace("\0", "\ufffd")
        )
    finally:
        deadline.cancel()
        connection.close()


def _headers(delivery: PendingDelivery) -> dict[str, str]:
    now = int(time.time())
    return {
        "Content-Type": "application/json",
        "User-Agent": f"seft/{__version__}",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(sign(secret, delivery.id, now, delivery.body) for secret in delivery.secrets),
    }


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to an address that was checked already. The host name is not resolved again.

    TLS still verifies the certificate against the host name.
    """

    def __init__(self, host: str, port: int, address: str, *, secure: bool) -> None:
        super().__init__(host, port, timeout=CALL_SECONDS)
        self.address, self.secure = address, secure
        self.default_port = 443 if secure else 80

    @override
    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def abort(self) -> None:
        """Close the connection. A thread that is reading from it gets an error."""
        with suppress(OSError):
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
