"""Refuse query parameters that an operation does not have, and repeated ones that are not lists."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from fastapi import Request

from api.flaws import SECRET, guess, shown
from core.errors import Code, Flaw, ProblemError

MAX_FLAWS = 20
"""Maximum number of unknown parameters that an error names. The query of a request can have thousands."""


async def require_known_parameters(request: Request) -> None:
    """Raise INVALID_REQUEST if the query has an unknown parameter, or repeats one that is not a list.

    It is async and needs no key, so a refusal takes no thread.
    """
    fields = {field.alias: field for field in _fields(request.scope["route"].dependant)}
    known = list(fields)
    unknown = [name for name in request.query_params if name not in known][:MAX_FLAWS]
    if unknown:
        flaws = tuple(_flaw(name, request.query_params[name], known) for name in unknown)
        names = ", ".join(flaw.param for flaw in flaws)
        raise ProblemError(Code.INVALID_REQUEST, f"There is no query parameter {names}. {flaws[0].way_out}", flaws)
    single = [name for name, field in fields.items() if not _is_list(field.field_info.annotation)]
    if repeated := [name for name in single if len(request.query_params.getlist(name)) > 1]:
        flaws = tuple(_repeated(name, request.query_params.getlist(name)) for name in repeated)
        raise ProblemError(Code.INVALID_REQUEST, f"A query parameter is repeated: {', '.join(repeated)}.", flaws)


def _fields(dependant: Any) -> Iterator[Any]:
    """Yield the query parameters of an operation and of its dependencies, in their order."""
    yield from dependant.query_params
    for each in dependant.dependencies:
        yield from _fields(each)


def _is_list(annotation: Any) -> bool:
    return any(get_origin(each) is list for each in (annotation, *get_args(annotation)))


def _repeated(name: str, values: list[str]) -> Flaw:
    received = "(not shown)" if SECRET.search(name) else shown(values[-1])
    return Flaw(name, f"must be given once; it is given {len(values)} times", received, f"Send {name} once.")


def _flaw(name: str, value: str, known: list[str]) -> Flaw:
    received = "(not shown)" if SECRET.search(name) else shown(value)
    names = f"Known parameters: {', '.join(known)}." if known else "This operation has no query parameters."
    return Flaw(shown(name)[1:-1], "There is no such query parameter", received, f"{guess(name, known)}{names}")
