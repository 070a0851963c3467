"""Health checks for operators: liveness, readiness, version."""

from fastapi import APIRouter

import core
from api.deps import CurrentServices
from api.errors import responses
from api.readiness import CHECK_SECONDS
from api.schemas.operations import Alive, Ready, Version
from core.errors import Code, Flaw, ProblemError

REQUIRED = ("database", "storage")
"""Servers that the service needs to be ready. Without the broker it is `degraded`, but still accepts and runs jobs."""

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez() -> Alive:
    """Report that the process runs. Checks no other server."""
    return Alive()


@router.get("/readyz", responses=responses(Code.UNAVAILABLE))
async def readyz(services: CurrentServices) -> Ready:
    """Check the database, the object storage and the broker. The result may be one second old.

    The response comes within about three seconds.
    """
    checks = dict(await services.readiness.results())
    flaws = tuple(
        Flaw(name, f"must answer within {CHECK_SECONDS:g} s", result, "Check this server and the connection to it.")
        for name, result in checks.items()
        if name in REQUIRED and result != "ok"
    )
    if flaws:
        names = " and ".join(flaw.param for flaw in flaws)
        raise ProblemError(Code.UNAVAILABLE, f"No answer from {names}.", flaws)
    return Ready(status="ready" if set(checks.values()) == {"ok"} else "degraded", checks=checks)


@router.get("/version")
async def version() -> Version:
    """Return the version of the service."""
    return Version(version=core.__version__)
