"""Circuit breaker: skip calls to a server that was just unreachable, so that requests do not wait for it."""

import time

OPEN_SECONDS = 5.0


class CircuitBreaker:
    """The circuit breaker of one server. Safe to share between threads."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether to skip calls to the server, because it was unreachable less than `OPEN_SECONDS` ago."""
        return time.monotonic() < self._until

    def trip(self) -> None:
        """Record that the server is unreachable now."""
        self._until = time.monotonic() + OPEN_SECONDS
