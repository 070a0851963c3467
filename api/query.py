"""Refuse query parameters that an operation does not have, as unknown fields of a body are refused."""

from typing import Any

from fastapi import Request

from api.flaws import SECRET, guess, shown
from core.errors import Code, Flaw, ProblemError

MAX_FLAWS = 20
"""Maximum number of unknown parameters that an error names. The query of a request can have thousands."""


async def require_known_parameters(request: Request) -> None:
    """Raise INVALID_REQUEST if the query has a parameter that the operation of this request does not have.

    It is async and needs no key, so a refusal takes no thread.
    """
    known = _names(request.scope["route"].dependant)
    unknown = [name for name in request.query_params if name not in known][:MAX_FLAWS]
    if unknown:
        flaws = tuple(_flaw(name, request.query_params[name], known) for name in unknown)
        names = ", ".join(flaw.param for flaw in flaws)
        raise ProblemError(Code.INVALID_REQUEST, f"There is no query parameter {names}. {flaws[0].way_out}", flaws)


def _names(dependant: Any) -> list[str]:
    """Return the names of the query parameters of an operation and of its dependencies, in their order."""
    inner = (name for each in dependant.dependencies for name in _names(each))
    return list(dict.fromkeys([*(field.alias for field in dependant.query_params), *inner]))


def _flaw(name: str, value: str, known: list[str]) -> Flaw:
    received = "(not repeated)" if SECRET.search(name) else shown(value)
    names = f"Known parameters: {', '.join(known)}." if known else "This operation has no query parameters."
    return Flaw(shown(name)[1:-1], "There is no such query parameter", received, f"{guess(name, known)}{names}")
