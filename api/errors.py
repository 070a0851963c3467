"""Problem reports (RFC 9457): the one table of codes and HTTP statuses, and the handlers that make every error one.

What went wrong inside is logged, not told; the request id leads from the report to the log.
"""

from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import structlog
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from api.flaws import flaws_of
from api.limits import LimitError
from core.errors import Code, Flaw, ProblemError

GUARDED = (
    Code.UNAUTHENTICATED,
    Code.FORBIDDEN,
    Code.RATE_LIMITED,
    Code.INVALID_REQUEST,
    Code.INTERNAL,
    Code.UNAVAILABLE,
)
"""What every operation that needs a key may answer with."""

BODY = (Code.TOO_SLOW, Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID_REQUEST)
"""What every operation that takes a body may answer with besides."""

MEDIA_TYPE = "application/problem+json"

TABLE: dict[Code, tuple[HTTPStatus, str]] = {
    Code.INVALID_REQUEST: (HTTPStatus.UNPROCESSABLE_ENTITY, "The request breaks a rule"),
    Code.UNAUTHENTICATED: (HTTPStatus.UNAUTHORIZED, "A valid API key is needed"),
    Code.FORBIDDEN: (HTTPStatus.FORBIDDEN, "The API key's scope does not allow it"),
    Code.RATE_LIMITED: (HTTPStatus.TOO_MANY_REQUESTS, "Too many requests with this API key"),
    Code.NOT_FOUND: (HTTPStatus.NOT_FOUND, "There is no such thing"),
    Code.METHOD_NOT_ALLOWED: (HTTPStatus.METHOD_NOT_ALLOWED, "This address does not know this method"),
    Code.UNSUPPORTED_MEDIA_TYPE: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body has the wrong type"),
    Code.TOO_LARGE: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    Code.TOO_SLOW: (HTTPStatus.REQUEST_TIMEOUT, "The body came too slowly"),
    Code.INVALID_DATASET: (HTTPStatus.UNPROCESSABLE_ENTITY, "The dataset breaks a rule"),
    Code.MODEL_NOT_FOUND: (HTTPStatus.UNPROCESSABLE_ENTITY, "There is no such model"),
    Code.MODEL_REFUSED: (HTTPStatus.UNPROCESSABLE_ENTITY, "The model may not be loaded here"),
    Code.HUB_UNREACHABLE: (HTTPStatus.BAD_GATEWAY, "The model hub does not answer"),
    Code.HUB_BUSY: (HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests wait for the model hub"),
    Code.IDEMPOTENCY_CONFLICT: (HTTPStatus.UNPROCESSABLE_ENTITY, "The key came with another body before"),
    Code.IDEMPOTENCY_IN_FLIGHT: (HTTPStatus.CONFLICT, "A request with this key is being served"),
    Code.LIMIT_REACHED: (HTTPStatus.CONFLICT, "Your tenant has as many as it may"),
    Code.CONFLICT: (HTTPStatus.CONFLICT, "The state does not allow it"),
    Code.UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, "A part of the service does not answer"),
    Code.INTERNAL: (HTTPStatus.INTERNAL_SERVER_ERROR, "An error on our side"),
}

RETRY_AFTER = {Code.UNAVAILABLE: 5, Code.HUB_BUSY: 5, Code.IDEMPOTENCY_IN_FLIGHT: 1}
"""Seconds after which the same request may well succeed."""

SERVERS_DOWN = (OperationalError, InterfaceError, PoolTimeoutError, Boto3Error, BotoCoreError, ClientError)

log = structlog.get_logger(__name__)


class FlawView(BaseModel):
    """One thing that is wrong."""

    param: str = Field(description="Dotted path of the field, name of the parameter or header, or line of the file.")
    rule: str
    value: str = Field(description="What was seen, shortened.")
    way_out: str


class Problem(BaseModel):
    """What every answer that is no success looks like."""

    type: str
    title: str
    status: int
    detail: str
    code: Code
    param: str | None = Field(description="The first flaw's.")
    request_id: str
    errors: list[FlawView]


def problem(
    request: Request, code: Code, detail: str, flaws: Sequence[Flaw] = (), headers: dict[str, str] | None = None
) -> Response:
    """The report as a response."""
    status, title = TABLE[code]
    body = Problem(
        type=f"urn:seft:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        param=flaws[0].param if flaws else None,
        request_id=request.state.request_id,
        errors=[FlawView(**asdict(flaw)) for flaw in flaws],
    )
    extra = {"Retry-After": str(RETRY_AFTER[code])} if code in RETRY_AFTER else {}
    return Response(body.model_dump_json(), int(status), {**extra, **(headers or {})}, MEDIA_TYPE)


def schemas() -> dict[str, Any]:
    """The JSON schemas of a problem report, by name."""
    whole = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**whole.pop("$defs"), "Problem": whole}


def responses(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI declares that an operation may answer with these codes."""
    declared: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = TABLE[code]
        entry = declared.setdefault(
            int(status),
            {"description": "", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
        )
        entry["description"] += f"{', ' if entry['description'] else ''}`{code}`: {title}"
    return declared


def install(app: FastAPI) -> None:
    """Answer every error that a route or the framework raises with a problem report."""
    app.add_exception_handler(ProblemError, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    for error in SERVERS_DOWN:
        app.add_exception_handler(error, _server_down)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    headers = {"WWW-Authenticate": "Bearer"} if error.code is Code.UNAUTHENTICATED else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return problem(request, error.code, error.message, error.flaws, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    flaws = flaws_of(request, error)
    detail = "; ".join(f"{flaw.param}: {flaw.rule}" for flaw in flaws)
    return problem(request, Code.INVALID_REQUEST, detail, flaws)


async def _framework(request: Request, error: Exception) -> Response:
    """What the framework raises by itself: no such address, no such method, or a body that it cannot read."""
    assert isinstance(error, HTTPException)
    if isinstance(error, LimitError):
        answer = await _told(request, error.problem)
        answer.headers["Connection"] = "close"  # the rest of the body is not waited for
        return answer
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}. GET /docs shows what there is."
        return problem(request, Code.NOT_FOUND, detail)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _methods(request)
        detail = f"{request.url.path} does not know {request.method}. Use {allowed}."
        return problem(request, Code.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})
    flaw = Flaw("body", error.detail, "unreadable", "Send what the header Content-Type says, as GET /docs shows it.")
    return problem(request, Code.INVALID_REQUEST, f"The body cannot be read: {error.detail}", (flaw,))


def _methods(request: Request) -> str:
    """What an address knows; the framework names the first of its routes only."""
    paths = request.app.openapi()["paths"]
    here = next((path for path in paths if compile_path(path)[0].match(request.url.path)), None)
    return ", ".join(sorted(method.upper() for method in paths[here])) if here else "GET"


async def _server_down(request: Request, error: Exception) -> Response:
    log.error("server.down", error=str(error))
    return problem(request, Code.UNAVAILABLE, "The database or the object storage does not answer. Try again soon.")
