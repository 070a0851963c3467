"""A server that was away is left alone for a while, so that not every request waits until it is found away again."""

import time

AWAY_SECONDS = 5.0


class CircuitBreaker:
    """One server's. Safe to share between threads."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        """The server was away a moment ago."""
        return time.monotonic() < self._until

    def begin(self) -> None:
        """The server has just been found away."""
        self._until = time.monotonic() + AWAY_SECONDS
