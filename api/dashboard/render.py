"""Render templates to responses. Pages have an ETag, so a browser that polls an unchanged page gets a short 304."""

import hashlib
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import core
from api.dashboard import formatting
from api.dashboard.visitors import Visitor
from api.etags import tagged
from core.errors import Code, ProblemError
from core.states import Status
from seft.config import format_of

ROOT = "/dashboard"
HERE = Path(__file__).parent
ASSETS = HERE / "assets"
THEMES = ("light", "dark")
FILTERS = (
    "size",
    "short_count",
    "percent",
    "perplexity",
    "duration",
    "rough_duration",
    "count",
    "hosts",
    "sentence",
    "job_title",
    "job_summary",
    "target_sparsity",
    "requested_steps",
    "is_gradual",
    "score_names",
    "can_recover",
    "has_events",
    "recovered_fraction",
    "lost_nothing",
    "waiting_reason",
)
"""Functions of `formatting` that the templates can use as filters."""


def page(request: Request, visitor: Visitor | None, name: str, *, status: int = 200, **values: Any) -> Response:
    """Render a template to a page. Answers 304 if the browser already has this version of the page."""
    theme = request.cookies.get("theme")
    html = (
        environment()
        .get_template(name)
        .render(
            request=request,
            visitor=visitor,
            path=request.url.path.removeprefix(ROOT),
            theme=theme if theme in THEMES else None,
            **values,
        )
    )
    if_none_match = request.headers.get("if-none-match", "") if status == 200 else ""
    response = tagged(html, if_none_match, "text/html; charset=utf-8")
    if response.status_code == 200:
        response.status_code = status
    return response


def go(path: str) -> Response:
    """Redirect to another page of the dashboard."""
    return RedirectResponse(ROOT + path, 303)


def go_after(action: str, known: Collection[str], path: str, run: Callable[[], object]) -> Response:
    """Call `run` for an action, then redirect to the page `path`. It says so if the present state forbids the action.

    Raises NOT_FOUND if the action is not one of the known ones.
    """
    if action not in known:
        raise ProblemError(Code.NOT_FOUND, f"There is no action {action!r}. Use one of: {', '.join(known)}.")
    try:
        run()
    except ProblemError as error:
        if error.code is not Code.CONFLICT:
            raise
        return go(f"{path}?refused={action}")
    return go(path)


@cache
def environment() -> Environment:
    """Return the template environment. It escapes all values. An undefined name in a template raises an error."""
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {name: getattr(formatting, name) for name in FILTERS} | {"format_of": format_of}
    templates.globals |= {"root": ROOT, "asset": asset, "version": core.__version__, "Status": Status}
    return templates


@cache
def asset(name: str) -> str:
    """Return the URL of an asset. The URL changes with the content, so that browsers may cache it permanently."""
    digest = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()[:12]
    return f"{ROOT}/assets/{name}?v={digest}"
