"""From a template and values to an answer, under an ETag, so that a page which polls itself costs little."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import core
from api.dashboard import words
from api.dashboard.visitors import Visitor
from api.etags import tagged
from core.states import Status

ROOT = "/dashboard"
HERE = Path(__file__).parent
ASSETS = HERE / "assets"
THEMES = ("light", "dark")
WORDS = (
    "size",
    "many",
    "percent",
    "score",
    "duration",
    "about",
    "count",
    "hosts",
    "sentence",
    "short",
    "title",
    "story",
    "won_back",
    "waiting",
)


def page(request: Request, visitor: Visitor | None, name: str, *, status: int = 200, **values: Any) -> Response:
    """The template as a page; 304 where the browser has it."""
    theme = request.cookies.get("theme")
    html = (
        environment()
        .get_template(name)
        .render(
            request=request,
            visitor=visitor,
            here=request.url.path.removeprefix(ROOT),
            theme=theme if theme in THEMES else None,
            **values,
        )
    )
    answer = tagged(html, request.headers.get("if-none-match", "") if status == 200 else "", "text/html; charset=utf-8")
    if answer.status_code == 200:
        answer.status_code = status
    return answer


def go(path: str) -> Response:
    """To another page of the dashboard."""
    return RedirectResponse(ROOT + path, 303)


@cache
def environment() -> Environment:
    """All templates. Whatever they are given is escaped; a name that they lack is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {name: getattr(words, name) for name in WORDS}
    made.globals |= {"root": ROOT, "asset": asset, "version": core.__version__, "Status": Status}
    return made


@cache
def asset(name: str) -> str:
    """Address of an asset, which changes with its content: browsers may keep it for good."""
    digest = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()[:12]
    return f"{ROOT}/assets/{name}?v={digest}"
