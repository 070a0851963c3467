"""Who looks at a page: the browser's cookie, the guard against forged requests, and what the key's scope allows."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import FormData

from api.deps import READING, CurrentServices, counted, require_scope
from core.access import sign_ins
from core.access.audit import Caller
from core.access.keys import Scope
from core.errors import Code, ProblemError

COOKIE = "seft_session"
FIELDS = 100
"""More than any form of ours has."""


class SignInNeededError(Exception):
    """Nobody is signed in: the answer is the page where one does."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """A signed-in person."""

    caller: Caller
    csrf: str
    key_name: str

    @property
    def may_write(self) -> bool:
        """Whether to show what changes things."""
        return self.caller.scope.allows(Scope.WRITE)

    @property
    def may_administer(self) -> bool:
        """Whether to show keys."""
        return self.caller.scope.allows(Scope.ADMIN)


def same_origin(request: Request) -> None:
    """FORBIDDEN where a browser says that another site's page sends this."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        ours = site in {"same-origin", "none"}
    else:
        ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not ours:
        raise ProblemError(Code.FORBIDDEN, "This was sent by a page of another site, and was not done.")


def signed_in(request: Request, services: CurrentServices) -> Visitor:
    """The visitor, or SignInNeededError; FORBIDDEN, RATE_LIMITED as for the JSON routes."""
    token = request.cookies.get(COOKIE, "")
    with services.sessions.begin() as session:
        visit = sign_ins.authenticate(session, token) if token else None
    if visit is None:
        raise SignInNeededError
    if visit.token != token:
        request.state.fresh_token = visit.token
    caller = counted(request, services, visit.key)
    if request.method not in READING:
        same_origin(request)
    return Visitor(caller, visit.csrf, visit.key.name)


Signed = Annotated[Visitor, Depends(signed_in)]


def administrator(visitor: Signed) -> Visitor:
    """The visitor, or FORBIDDEN."""
    require_scope(visitor.caller, Scope.ADMIN)
    return visitor


Administrator = Annotated[Visitor, Depends(administrator)]


async def submitted(request: Request, visitor: Signed) -> AsyncIterator[FormData]:
    """The form that a signed-in person sent from a page of ours, or FORBIDDEN. Nobody else can fill the disk."""
    async with request.form(max_files=1, max_fields=FIELDS) as form:
        if form.get("csrf") != visitor.csrf:
            raise ProblemError(
                Code.FORBIDDEN, "This form is from another sign-in. Load the page anew and send it again."
            )
        yield form


Submitted = Annotated[FormData, Depends(submitted)]
