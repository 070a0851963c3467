"""Circuit breaker: skip calls to a server for a while after it was unreachable, so that requests do not wait for it."""

import time

OPEN_SECONDS = 5.0


class CircuitBreaker:
    """The breaker of one server. Safe to share between threads."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls should be skipped, because the server was unreachable less than `OPEN_SECONDS` ago."""
        return time.monotonic() < self._until

    def trip(self) -> None:
        """Open the breaker, because the server is unreachable now."""
        self._until = time.monotonic() + OPEN_SECONDS
