"""Retries: of a broken connection, of a busy service, and of an error from a proxy.

A retry is safe: calls that create something carry an idempotency key, and all other retried calls are idempotent.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from seft.client.errors import Unreachable
from seft.client.steps import Open, Pause, Reply, Send, Steps

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between retries if the server names no time. Each is shortened at random by up to a half."""
LONGEST = 60.0
"""Longest `Retry-After`, in seconds, that is respected. A longer one ends the retries."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
PROXY_ERRORS = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


def tried(step: Send | Open, pauses: Sequence[float]) -> Steps[Reply]:
    """Send until the reply is final, with at most one retry per pause. The reply may be an error."""
    for pause in (*pauses, None):
        try:
            reply: Reply = yield step
        except Unreachable:
            if pause is None:
                raise
            yield Pause(_shortened(pause))
            continue
        seconds = retry_after(reply)
        if pause is None or not _may_pass(reply) or (seconds or 0) > LONGEST:
            break
        yield Pause(_shortened(pause) if seconds is None else seconds)
    return reply


def retry_after(reply: Reply) -> float | None:
    """Return the seconds of `Retry-After`, which holds seconds or a date (RFC 9110, section 10.2.3)."""
    value = reply.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def is_problem(reply: Reply) -> bool:
    """Return whether the service itself wrote this error."""
    return reply.headers.get("Content-Type", "").startswith("application/problem+json")


def _may_pass(reply: Reply) -> bool:
    """Return whether a retry may succeed. 409 with `Retry-After` means that the same request is still being served."""
    if reply.status == HTTPStatus.CONFLICT:
        return "Retry-After" in reply.headers
    return reply.status in BUSY or (reply.status in PROXY_ERRORS and not is_problem(reply))


def _shortened(pause: float) -> float:
    return pause * random.uniform(0.5, 1.0)
