"""Retries a request if the connection breaks, the service is busy, or a proxy reports an error.

A retry is safe: requests that create something carry an idempotency key, and all other retried requests are idempotent.
"""

import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from seft.client.errors import Unreachable
from seft.client.steps import Open, Pause, Reply, Send, Steps

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between retries if the server names no time. Each is shortened at random by at most a half."""
LONGEST = 60.0
"""Longest `Retry-After` in seconds that the client waits for. If the server names a longer one, there is no retry."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
PROXY_ERRORS = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
LOG = logging.getLogger("seft.client")
"""Log of the waits. Without another configuration, Python prints it to stderr."""


def tried(step: Send | Open, pauses: Sequence[float]) -> Steps[Reply]:
    """Send a request, with at most one retry per pause. Returns the last reply, which may be an error.

    Raises Unreachable if the last attempt got no reply.
    """

    def attempt() -> Steps[Reply]:
        reply: Reply = yield step
        return reply

    return (yield from attempted(attempt, pauses))


def attempted(attempt: Callable[[], Steps[Reply]], pauses: Sequence[float]) -> Steps[Reply]:
    """Perform the steps of `attempt`, which may raise Unreachable, as `tried` sends a request."""
    for pause in (*pauses, None):
        try:
            reply = yield from attempt()
        except Unreachable as error:
            if pause is None:
                raise
            why, seconds = str(error), _shortened(pause)
        else:
            asked = retry_after(reply)
            if pause is None or not _may_pass(reply) or (asked or 0) > LONGEST:
                break
            why, seconds = f"{reply.url} answered HTTP {reply.status}.", _shortened(pause) if asked is None else asked
        LOG.warning("%s The client tries again in %.1f seconds.", why, seconds)
        yield Pause(seconds)
    return reply


def retry_after(reply: Reply) -> float | None:
    """Return the seconds of the header `Retry-After`, which has seconds or a date (RFC 9110, section 10.2.3).

    Returns None if it is missing or invalid.
    """
    value = reply.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _may_pass(reply: Reply) -> bool:
    """Return whether a retry may succeed.

    409 with `Retry-After` means that the service is still processing the same request.
    """
    if reply.status == HTTPStatus.CONFLICT:
        return "Retry-After" in reply.headers
    return reply.status in BUSY or (reply.status in PROXY_ERRORS and not reply.is_problem)


def _shortened(pause: float) -> float:
    return pause * random.uniform(0.5, 1.0)
