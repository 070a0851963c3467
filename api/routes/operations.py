"""Health checks for operators: liveness, readiness, version."""

from collections.abc import Callable

import anyio
import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy import text

import core
from api.deps import CurrentServices, Services
from api.errors import responses
from api.schemas.operations import Alive, Ready, Version
from core.errors import Code, Flaw, ProblemError
from core.infra import queue

CHECK_SECONDS = 3.0
"""Timeout of one check, in seconds."""
REQUIRED = ("database", "storage")
"""Servers that the service needs to be ready. Without the broker it is `degraded`, but still accepts and runs jobs."""

log = structlog.get_logger(__name__)
router = APIRouter(tags=["operations"])


@router.get("/livez", operation_id="livez")
async def livez() -> Alive:
    """Report that the process runs. Checks no other server."""
    return Alive()


@router.get("/readyz", operation_id="readyz", responses=responses(Code.UNAVAILABLE))
async def readyz(services: CurrentServices) -> Ready:
    """Check the database, the object storage and the broker. The response comes within about three seconds."""
    results: dict[str, str] = {}
    async with anyio.create_task_group() as group:
        for name, check in _checks(services).items():
            group.start_soon(_run_check, name, check, services.checks, results)
    checks = {name: results[name] for name in _checks(services)}
    flaws = tuple(
        Flaw(name, f"must answer within {CHECK_SECONDS:g} s", result, "Check this server and the connection to it.")
        for name, result in checks.items()
        if name in REQUIRED and result != "ok"
    )
    if flaws:
        names = " and ".join(flaw.param for flaw in flaws)
        raise ProblemError(Code.UNAVAILABLE, f"No answer from {names}.", flaws)
    return Ready(status="ready" if set(checks.values()) == {"ok"} else "degraded", checks=checks)


@router.get("/version", operation_id="version")
async def version() -> Version:
    """Return the version of the service."""
    return Version(version=core.__version__)


def _checks(services: Services) -> dict[str, Callable[[], object]]:
    return {
        "database": lambda: _ping_database(services),
        "storage": services.storage.ping,
        "broker": lambda: queue.ping(services.broker),
    }


def _ping_database(services: Services) -> None:
    with services.engine.connect() as connection:
        connection.execute(text("SELECT 1"))


async def _run_check(name: str, check: Callable[[], object], threads: CapacityLimiter, results: dict[str, str]) -> None:
    """Run a check and store `ok` or the type of its error.

    The error's text goes only to the log, because it may contain host and user names.
    """
    try:
        with anyio.fail_after(CHECK_SECONDS):
            await run_sync(check, abandon_on_cancel=True, limiter=threads)
        results[name] = "ok"
    except Exception as error:
        log.warning("check.failed", server=name, error=str(error))
        results[name] = type(error).__name__
