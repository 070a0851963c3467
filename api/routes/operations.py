"""For whoever runs the service: does it live, is it ready, what is it."""

from collections.abc import Callable

import anyio
import structlog
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
NEEDED = ("database", "storage")
"""Without the broker running jobs go on and new ones are taken in; the sweep hints at them when it is back."""

log = structlog.get_logger(__name__)
router = APIRouter(tags=["operations"])


@router.get("/livez", operation_id="livez")
async def livez() -> Alive:
    """The process answers; nothing else is looked at."""
    return Alive()


@router.get("/readyz", operation_id="readyz", responses=responses(Code.UNAVAILABLE))
async def readyz(services: CurrentServices) -> Ready:
    """Database, object storage and broker are asked, all at once and for three seconds at most."""
    found: dict[str, str] = {}
    async with anyio.create_task_group() as group:
        for name, check in _checks(services).items():
            group.start_soon(_ask, name, check, found)
    checks = {name: found[name] for name in _checks(services)}
    flaws = tuple(
        Flaw(name, f"answers within {CHECK_SECONDS:g} s", seen, "Look after this server.")
        for name, seen in checks.items()
        if name in NEEDED and seen != "ok"
    )
    if flaws:
        names = " and ".join(flaw.param for flaw in flaws)
        raise ProblemError(Code.UNAVAILABLE, f"No answer from {names}.", flaws)
    return Ready(status="ready" if set(checks.values()) == {"ok"} else "degraded", checks=checks)


@router.get("/version", operation_id="version")
async def version() -> Version:
    """The version of the service."""
    return Version(version=core.__version__)


def _checks(services: Services) -> dict[str, Callable[[], object]]:
    return {
        "database": lambda: _ask_database(services),
        "storage": services.storage.ping,
        "broker": lambda: queue.ping(services.broker),
    }


def _ask_database(services: Services) -> None:
    with services.engine.connect() as connection:
        connection.execute(text("SELECT 1"))


async def _ask(name: str, check: Callable[[], object], found: dict[str, str]) -> None:
    """`ok`, or what kind of error it is; the log has the whole of it, which may name hosts and users."""
    try:
        with anyio.fail_after(CHECK_SECONDS):
            await run_sync(check, abandon_on_cancel=True)
        found[name] = "ok"
    except Exception as error:
        log.warning("check.failed", server=name, error=str(error))
        found[name] = type(error).__name__
