"""The pages to sign in with an API key and to sign out."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Request, Response
from starlette.datastructures import URL

from api.connections import network_of
from api.dashboard.render import ROOT, go, page
from api.dashboard.visitors import COOKIE, SubmittedByAnyScope, require_same_origin
from api.deps import CurrentServices, make_caller
from core.access import sign_ins

router = APIRouter()


@router.get("/sign-in")
def show_form(request: Request, back: str = "") -> Response:
    """Show the sign-in form. `back` is the page to show after signing in."""
    return page(request, None, "sign_in.html", back=back, rejected=False)


@router.post("/sign-in", dependencies=[Depends(require_same_origin)])
def sign_in(
    request: Request, services: CurrentServices, key: Annotated[str, Form()] = "", back: Annotated[str, Form()] = ""
) -> Response:
    """Start a session for this browser. If the browser already has a session, that session is ended first.

    Raises RATE_LIMITED if the key has made too many requests, or the network has sent too many unknown keys.
    """
    network, secret = network_of(request), key.strip()
    services.unknown_callers.require_below_limit(network, secret)
    with services.sessions.begin() as session:
        visit = sign_ins.begin(session, secret)
        if visit:
            make_caller(request, services, visit.key)  # counts against the key's rate limit
            if old_token := request.cookies.get(COOKIE):
                sign_ins.end(session, old_token)
    services.unknown_callers.record(network, secret, valid=visit is not None)
    if visit is None:
        return page(request, None, "sign_in.html", status=422, back=back, rejected=True)
    services.unknown_callers.record(network, visit.token, valid=True)
    request.state.fresh_token = visit.token
    # Only a path of the dashboard is allowed. Browsers take a path that begins with // or /\ for another host.
    return go(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/")


@router.post("/sign-out")
def sign_out(request: Request, services: CurrentServices, _: SubmittedByAnyScope) -> Response:
    """Sign out: end the session of this browser. This needs no scope."""
    with services.sessions.begin() as session:
        sign_ins.end(session, request.cookies[COOKIE])
    request.state.fresh_token = None
    response = go("/sign-in")
    response.delete_cookie(COOKIE, path=ROOT)
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


def cookie(request: Request, token: str) -> str:
    """Return the Set-Cookie header for a session token.

    Scripts cannot read the cookie, and browsers do not send it with requests from other sites.
    """
    response = Response()
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(sign_ins.LIFE.total_seconds()),
        path=ROOT,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return response.headers["set-cookie"]


def back_query(request: Request) -> str:
    """Return the URL query that makes the sign-in page return to the requested page afterwards."""
    return urlencode({"back": page_of(request.url)})


def page_with_form(request: Request) -> str:
    """Return the page of the dashboard whose form sent this request. Empty if it is not known."""
    url = URL(request.headers.get("referer", ""))
    return page_of(url) if url.path.startswith(f"{ROOT}/") else ""


def page_of(url: URL) -> str:
    """Return the page of the dashboard that a URL names: its path and query, without the host and `ROOT`."""
    path = url.path.removeprefix(ROOT)
    return f"{path}?{url.query}" if url.query else path
