"""Delivers webhooks: a thread of every API process. The rows say what is owed; several couriers share the work.

A delivery is a POST signed as standardwebhooks.com says. It goes to the address that was judged, follows no redirect,
and ends after `CALL_SECONDS` whatever the receiver does.
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

from core import __version__, webhooks
from core.addresses import AddressError, Network, Resolver, resolve, resolve_public
from core.webhooks import DeliveryResult, PendingDelivery

LOOK_SECONDS = 1.0
CALL_SECONDS = 15.0
CALLS = 8
TIDY_SECONDS = 3600.0
SHOWN_BYTES = 1024
"""Of an answer's body, kept for whoever reads the log."""

log = structlog.get_logger(__name__)


class Courier(threading.Thread):
    """Looks for deliveries that are due, for ever. Nothing that goes wrong ends it."""

    def __init__(
        self, sessions: sessionmaker[Session], allowed: Sequence[Network], resolver: Resolver = resolve
    ) -> None:
        super().__init__(name="courier", daemon=True)
        self.sessions, self.allowed, self.resolver = sessions, allowed, resolver

    @override
    def run(self) -> None:
        pause, tidied = threading.Event(), time.monotonic()
        with ThreadPoolExecutor(CALLS, "courier") as pool:
            while True:
                try:
                    found = self.round(pool)
                    if time.monotonic() > tidied + TIDY_SECONDS:
                        tidied = self._tidy()
                except Exception as error:
                    log.warning("courier.failed", error=str(error))
                    found = 0
                if not found:
                    pause.wait(LOOK_SECONDS)

    def round(self, pool: ThreadPoolExecutor) -> int:
        """Make the deliveries that are due, one for each webhook; how many there were."""
        with self.sessions.begin() as session:
            owed = webhooks.claim(session, CALLS)
        list(pool.map(self._deliver, owed))
        return len(owed)

    def _tidy(self) -> float:
        with self.sessions.begin() as session:
            webhooks.delete_old(session)
        return time.monotonic()

    def _deliver(self, owed: PendingDelivery) -> None:
        answer = call(owed, self.allowed, self.resolver)
        with self.sessions.begin() as session:
            webhooks.record_result(session, owed, answer)
        log.info("webhook.called", webhook=owed.webhook_id, delivery=owed.id, number=owed.number, status=answer.status)


def call(owed: PendingDelivery, allowed: Sequence[Network], resolver: Resolver = resolve) -> DeliveryResult:
    """Make a delivery. Whatever goes wrong is an answer."""
    try:
        return _post(owed, allowed, resolver)
    except AddressError as error:
        return DeliveryResult(None, str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return DeliveryResult(None, f"{type(error).__name__}: {error}"[:SHOWN_BYTES])


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """The signature of Standard Webhooks: HMAC-SHA256 over id, time and body."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _post(owed: PendingDelivery, allowed: Sequence[Network], resolver: Resolver) -> DeliveryResult:
    url = urlsplit(owed.url)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    address = resolve_public(host, allowed, resolver)
    connection = _Connection(host, port, address, secure=url.scheme == "https")
    # A receiver that sends a byte now and then never runs into the socket's own timeout.
    end = threading.Timer(CALL_SECONDS, connection.abort)
    end.start()
    try:
        path = f"{url.path or '/'}{'?' if url.query else ''}{url.query}"
        connection.request("POST", path, owed.body.encode(), _headers(owed))
        response = connection.getresponse()
        return DeliveryResult(
            response.status, response.read(SHOWN_BYTES).decode(errors="replace").replace("\0", "\ufffd")
        )
    finally:
        end.cancel()
        connection.close()


def _headers(owed: PendingDelivery) -> dict[str, str]:
    now = int(time.time())
    return {
        "Content-Type": "application/json",
        "User-Agent": f"seft/{__version__}",
        "webhook-id": owed.id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(sign(secret, owed.id, now, owed.body) for secret in owed.secrets),
    }


class _Connection(http.client.HTTPConnection):
    """A connection to one address, whatever the host's name stands for by now; the name is what TLS checks."""

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
        """Let whoever waits for this connection find it closed."""
        with suppress(OSError):
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
