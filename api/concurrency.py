"""Limit how many requests of a kind are served at the same time, in this process."""

import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from anyio import CapacityLimiter

from core.errors import Code, ProblemError

RETRY_AFTER_SECONDS = 5


class ConcurrencyLimit:
    """Limits how many requests of a kind each name has open. A name is a key, a tenant or a network.

    With `most` 0 there is no limit. Safe to share between threads.
    """

    def __init__(self, most: int, rule: str) -> None:
        self._most, self._rule = most, rule
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Count the `with` block as an open request. Raises RATE_LIMITED if the name has `most` open requests."""
        with self._lock:
            if self._most and self._open[name] >= self._most:
                detail = f"{self._rule}: at most {self._most} at the same time. Close one, or retry later."
                raise ProblemError(Code.RATE_LIMITED, detail, retry_after=RETRY_AFTER_SECONDS)
            self._open[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[name] -= 1
                if not self._open[name]:
                    del self._open[name]


class WorkQueue:
    """Requests that need much memory or time: a few are served at a time, and some more wait for their turn.

    A tenant can never take all turns, and can never fill the whole queue. All methods must be called in one event loop.
    """

    def __init__(self, what: str, *, running: int, waiting: int, per_tenant: int) -> None:
        """Serve `running` requests at a time and let `waiting` wait. Of these, a tenant may have `per_tenant`."""
        self._what, self._most, self._per_tenant = what, running + waiting, per_tenant
        self._tenant_running = max(1, running - 1)
        self._running = CapacityLimiter(running)
        self._open: Counter[str] = Counter()
        self._tenants: dict[str, CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the `with` block runs. Raises BUSY if too many requests wait already."""
        if self._open.total() >= self._most or self._open[tenant] >= self._per_tenant:
            raise ProblemError(Code.BUSY, f"Too many {self._what} are waiting. Retry in a few seconds.")
        self._open[tenant] += 1
        ours = self._tenants.setdefault(tenant, CapacityLimiter(self._tenant_running))
        try:
            async with ours, self._running:
                yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant], self._tenants[tenant]
