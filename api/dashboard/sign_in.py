"""Signing in with an API key, and out again."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Request, Response

from api.dashboard.render import ROOT, go, page
from api.dashboard.visitors import COOKIE, Submitted, same_origin
from api.deps import CurrentServices
from core.access import sign_ins

router = APIRouter()


@router.get("/sign-in")
def ask(request: Request, back: str = "") -> Response:
    """The form."""
    return page(request, None, "sign_in.html", back=back, wrong=False)


@router.post("/sign-in", dependencies=[Depends(same_origin)])
def sign_in(
    request: Request, services: CurrentServices, key: Annotated[str, Form()] = "", back: Annotated[str, Form()] = ""
) -> Response:
    """Open a session for this browser, in place of the one that it may have."""
    with services.sessions.begin() as session:
        visit = sign_ins.begin(session, key.strip())
        if visit and (former := request.cookies.get(COOKIE)):
            sign_ins.end(session, former)
    if visit is None:
        return page(request, None, "sign_in.html", status=422, back=back, wrong=True)
    request.state.fresh_token = visit.token
    # Only a path of ours; what starts with two slashes would be another host's.
    return go(back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/")


@router.post("/sign-out")
def sign_out(request: Request, services: CurrentServices, _: Submitted) -> Response:
    """Close this browser's session."""
    with services.sessions.begin() as session:
        sign_ins.end(session, request.cookies[COOKIE])
    request.state.fresh_token = None
    answer = go("/sign-in")
    answer.delete_cookie(COOKIE, path=ROOT)
    answer.headers["Clear-Site-Data"] = '"cache"'
    return answer


def cookie(request: Request, token: str) -> str:
    """The header that gives a browser its token: out of scripts' reach, and of other sites' requests."""
    answer = Response()
    answer.set_cookie(
        COOKIE,
        token,
        max_age=int(sign_ins.LIFE.total_seconds()),
        path=ROOT,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return answer.headers["set-cookie"]


def back_to(request: Request) -> str:
    """The query that leads back to this page after signing in."""
    path = request.url.path.removeprefix(ROOT)
    return urlencode({"back": f"{path}?{request.url.query}" if request.url.query else path})
