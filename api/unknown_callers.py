"""Limit the requests with unknown keys from each network, before the database is asked for the key.

A key that was valid a moment ago is not limited, so an attacker does not lock out users behind the same address.
"""

import threading
import time
from collections import OrderedDict
from typing import TypeVar

from core.access.keys import digest
from core.errors import Code, ProblemError

FAILURES = 100
"""Number of requests with unknown keys that a network may send in a burst."""
SECONDS_PER_FAILURE = 0.2
"""Seconds after which a network that sent so many may send one more request with an unknown key."""
REMEMBERED = 10_000
"""Maximum number of valid keys, and of networks, that are remembered."""

Value = TypeVar("Value")


class UnknownCallers:
    """The requests with unknown keys, or unknown session tokens, of this process. Safe to share between threads."""

    def __init__(self, *, limited: bool) -> None:
        self._limited = limited
        self._known: OrderedDict[str, None] = OrderedDict()
        self._arrivals: OrderedDict[str, float] = OrderedDict()
        """Per network, its theoretical arrival time, as in `core.access.rates` (the generic cell rate algorithm)."""
        self._lock = threading.Lock()

    def require_below_limit(self, network: str, secret: str) -> None:
        """Raise RATE_LIMITED if the network has sent too many unknown keys and this key is not known to be valid."""
        with self._lock:
            wait = self._arrivals.get(network, 0.0) - time.monotonic() - FAILURES * SECONDS_PER_FAILURE
            if not self._limited or wait <= -SECONDS_PER_FAILURE or digest(secret) in self._known:
                return
        detail = "Your network has sent too many requests with unknown API keys. Retry in a few seconds."
        raise ProblemError(Code.RATE_LIMITED, detail, retry_after=1)

    def record(self, network: str, secret: str, *, valid: bool) -> None:
        """Record whether the key of a request was valid."""
        sha256, now = digest(secret), time.monotonic()
        with self._lock:
            if valid:
                _remember(self._known, sha256, None)
            else:
                self._known.pop(sha256, None)  # the key was revoked, or the session has ended
                _remember(self._arrivals, network, max(self._arrivals.get(network, now), now) + SECONDS_PER_FAILURE)


def _remember(table: OrderedDict[str, Value], name: str, value: Value) -> None:
    """Store a value as the newest one. Forget the oldest one if there are more than `REMEMBERED`."""
    table[name] = value
    table.move_to_end(name)
    if len(table) > REMEMBERED:
        table.popitem(last=False)
