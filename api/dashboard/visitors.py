"""Identify who requests a page. Checks the session cookie, the key's scope, and that the request is not forged."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import FormData

from api.connections import network_of, read_form
from api.deps import READ_METHODS, CurrentServices, make_caller, require_scope, scope_for
from core.access import sign_ins
from core.access.audit import Caller
from core.access.keys import Scope
from core.errors import Code, ProblemError

COOKIE = "seft_session"
MAX_FIELDS = 100
"""Maximum number of fields in a submitted form. All forms of the dashboard have fewer."""


class SignInNeededError(Exception):
    """Nobody is signed in. The error handler redirects to the sign-in page."""


class FormRefusedError(ProblemError):
    """A form was not processed, although the scope of the key may allow it. The error page leads back to the form."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.FORBIDDEN, message)


@dataclass(frozen=True, slots=True)
class Visitor:
    """A person who is signed in."""

    caller: Caller
    csrf: str
    key_name: str

    @property
    def may_write(self) -> bool:
        """Whether the key's scope allows changes. If not, pages hide the controls for changes."""
        return self.caller.scope.allows(Scope.WRITE)

    @property
    def may_administer(self) -> bool:
        """Whether the key's scope allows managing API keys. If not, the page of API keys is hidden."""
        return self.caller.scope.allows(Scope.ADMIN)


def require_same_origin(request: Request) -> None:
    """Raise FORBIDDEN if the browser's headers say that a page of another site sent this request."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        is_same = site in {"same-origin", "none"}
    else:
        is_same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not is_same:
        raise FormRefusedError("A page of another site sent this request. Send the form from the dashboard itself.")


async def sent_token(request: Request, services: CurrentServices) -> str:
    """Return the token of the session that the request has sent. It is not verified yet.

    Raises SignInNeededError if there is none, and RATE_LIMITED if the network has sent too many unknown ones. It is
    async for the same reason as `api.deps.sent_key`.
    """
    token = request.cookies.get(COOKIE, "")
    if not token:
        raise SignInNeededError
    services.unknown_callers.require_below_limit(network_of(request), token)
    return token


def identified(request: Request, services: CurrentServices, token: Annotated[str, Depends(sent_token)]) -> Visitor:
    """Return the person who is signed in, with a key of any scope, and count the request against the key's rate limit.

    Raises SignInNeededError if nobody is signed in, and RATE_LIMITED if the key has made too many requests. The limit
    of `sent_token` is checked again, as in `api.deps`.
    """
    network = network_of(request)
    services.unknown_callers.require_below_limit(network, token)
    with services.sessions.begin() as session:
        visit = sign_ins.authenticate(session, token)
    services.unknown_callers.record(network, visit.token if visit else token, valid=visit is not None)
    if visit is None:
        raise SignInNeededError
    if visit.token != token:
        request.state.fresh_token = visit.token
    request.state.csrf = visit.csrf
    caller = make_caller(request, services, visit.key)
    if request.method not in READ_METHODS:
        require_same_origin(request)
    return Visitor(caller, visit.csrf, visit.key.name)


Identified = Annotated[Visitor, Depends(identified)]


def signed_in(request: Request, visitor: Identified) -> Visitor:
    """Return the person who is signed in. Raises FORBIDDEN if the scope of the key does not allow the request."""
    require_scope(visitor.caller, scope_for(request))
    return visitor


Signed = Annotated[Visitor, Depends(signed_in)]


def administrator(visitor: Signed) -> Visitor:
    """Return the visitor. Raises FORBIDDEN if the scope of the key is not `admin`."""
    require_scope(visitor.caller, Scope.ADMIN)
    return visitor


Administrator = Annotated[Visitor, Depends(administrator)]


async def submitted(request: Request, visitor: Signed) -> AsyncIterator[FormData]:
    """Return the submitted form. Raises FORBIDDEN if its CSRF token does not belong to this session.

    The form is read only after the session was checked. So nobody else can fill the disk with uploads.
    """
    async with _form(request, visitor) as form:
        yield form


async def submitted_by_any_scope(request: Request, visitor: Identified) -> AsyncIterator[FormData]:
    """Return the submitted form like `submitted`, but for a key of any scope."""
    async with _form(request, visitor) as form:
        yield form


async def submitted_upload(request: Request, services: CurrentServices, visitor: Signed) -> AsyncIterator[FormData]:
    """Return the submitted form of an upload, which counts as an open upload of the tenant until the response is sent.

    Raises RATE_LIMITED if the tenant has too many, and FORBIDDEN as `submitted` does.
    """
    with services.open_uploads.hold(visitor.caller.tenant):
        async with _form(request, visitor) as form:
            yield form


@asynccontextmanager
async def _form(request: Request, visitor: Visitor) -> AsyncIterator[FormData]:
    async with read_form(request, max_fields=MAX_FIELDS) as form:
        if form.get("csrf") != visitor.csrf:
            raise FormRefusedError("This form belongs to another sign-in. Go back to the form and send it again.")
        yield form


Submitted = Annotated[FormData, Depends(submitted)]
SubmittedByAnyScope = Annotated[FormData, Depends(submitted_by_any_scope)]
SubmittedUpload = Annotated[FormData, Depends(submitted_upload)]
