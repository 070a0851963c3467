"""Check whether the servers of the service answer. All requests of `GET /readyz` of a process share the checks.

The operation needs no key, so many callers must not cost more database statements than one.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import anyio
import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import Engine, text

from core.infra import queue
from core.infra.queue import Broker
from core.infra.storage import Storage

CHECK_SECONDS = 3.0
"""Timeout of one check, in seconds."""
VALID_SECONDS = 1.0
"""Seconds for which the result of the checks is used again."""
THREADS = 12
"""Number of threads that the checks may occupy."""

log = structlog.get_logger(__name__)


class Readiness:
    """The checks of the servers."""

    def __init__(self, engine: Engine, storage: Storage, broker: Broker) -> None:
        self._engine = engine
        self._checks: dict[str, Callable[[], object]] = {
            "database": self._ping_database,
            "storage": storage.ping,
            "broker": lambda: queue.ping(broker),
        }
        # The threads are separate, so that a busy service still reports that it works.
        self._threads = CapacityLimiter(THREADS)
        self._run: asyncio.Task[dict[str, str]] | None = None
        self._valid_until = 0.0

    async def results(self) -> Mapping[str, str]:
        """Return per server `ok` or the type of the error. The result may be `VALID_SECONDS` old."""
        if self._run is None or (self._run.done() and time.monotonic() >= self._valid_until):
            self._run = asyncio.create_task(self._check_all())
        return await asyncio.shield(self._run)  # a caller that leaves must not cancel it for the others

    async def _check_all(self) -> dict[str, str]:
        results = dict.fromkeys(self._checks, "")
        async with anyio.create_task_group() as group:
            for name, check in self._checks.items():
                group.start_soon(self._check, name, check, results)
        self._valid_until = time.monotonic() + VALID_SECONDS
        return results

    async def _check(self, name: str, check: Callable[[], object], results: dict[str, str]) -> None:
        """Run a check and store `ok` or the type of its error.

        The error's text goes only to the log, because it may contain host and user names.
        """
        try:
            with anyio.fail_after(CHECK_SECONDS):
                await run_sync(check, abandon_on_cancel=True, limiter=self._threads)
            results[name] = "ok"
        except Exception as error:
            log.warning("check.failed", server=name, error=str(error))
            results[name] = type(error).__name__

    def _ping_database(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(text("SELECT 1"))
