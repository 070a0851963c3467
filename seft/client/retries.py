"""When a call is sent again: the connection broke, the service is busy, a proxy speaks for it.

That is safe because every call that makes something carries an idempotency key, and all others may come twice.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from seft.client.errors import Unreachable
from seft.client.steps import Open, Pause, Reply, Send, Steps

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between tries where the server names none, each shortened by up to a half by chance."""
LONGEST = 60.0
"""A server that asks for more patience than these seconds is not waited for."""
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
PROXYS = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


def tried(step: Send | Open, pauses: Sequence[float]) -> Steps[Reply]:
    """The reply in the end, after as many tries as there are pauses, and one; it may still be a refusal."""
    for pause in (*pauses, None):
        try:
            reply: Reply = yield step
        except Unreachable:
            if pause is None:
                raise
            yield Pause(_shortened(pause))
            continue
        named = retry_after(reply)
        if pause is None or not _may_pass(reply) or (named or 0) > LONGEST:
            break
        yield Pause(_shortened(pause) if named is None else named)
    return reply


def retry_after(reply: Reply) -> float | None:
    """The seconds that `Retry-After` asks for, told as seconds or as a date."""
    named = reply.headers.get("Retry-After", "")
    if named.isdecimal():
        return float(named)
    try:
        return max(0.0, (parsedate_to_datetime(named) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def is_problem(reply: Reply) -> bool:
    """Whether the service itself wrote this refusal."""
    return reply.headers.get("Content-Type", "").startswith("application/problem+json")


def _may_pass(reply: Reply) -> bool:
    """Whether the same call may go well later. 409 with a time: its twin is still being served."""
    if reply.status == HTTPStatus.CONFLICT:
        return "Retry-After" in reply.headers
    return reply.status in BUSY or (reply.status in PROXYS and not is_problem(reply))


def _shortened(pause: float) -> float:
    return pause * random.uniform(0.5, 1.0)
