"""Error responses in the format of RFC 9457 ("problem reports"): their codes, HTTP statuses and exception handlers.

Internal details are written to the log and never sent. The report contains the request id, which finds them there.
"""

from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

from api.flaws import flaws_of
from api.limits import LimitError
from core.errors import Code, Flaw, ProblemError
from core.infra.storage import STORAGE_ERRORS

GUARDED = (
    Code.UNAUTHENTICATED,
    Code.FORBIDDEN,
    Code.RATE_LIMITED,
    Code.INVALID_REQUEST,
    Code.INTERNAL,
    Code.UNAVAILABLE,
)
"""Error codes that every operation with an API key can return."""

BODY = (Code.TOO_SLOW, Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID_REQUEST)
"""Additional error codes that every operation with a request body can return."""

MEDIA_TYPE = "application/problem+json"

TABLE: dict[Code, tuple[HTTPStatus, str]] = {
    Code.INVALID_REQUEST: (HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not valid"),
    Code.UNAUTHENTICATED: (HTTPStatus.UNAUTHORIZED, "A valid API key is required"),
    Code.FORBIDDEN: (HTTPStatus.FORBIDDEN, "The API key's scope does not allow this"),
    Code.RATE_LIMITED: (HTTPStatus.TOO_MANY_REQUESTS, "Too many requests"),
    Code.NOT_FOUND: (HTTPStatus.NOT_FOUND, "Not found"),
    Code.METHOD_NOT_ALLOWED: (HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed"),
    Code.UNSUPPORTED_MEDIA_TYPE: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body has the wrong media type"),
    Code.TOO_LARGE: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    Code.TOO_SLOW: (HTTPStatus.REQUEST_TIMEOUT, "The body arrived too slowly"),
    Code.INVALID_DATASET: (HTTPStatus.UNPROCESSABLE_ENTITY, "The dataset is not valid"),
    Code.MODEL_NOT_FOUND: (HTTPStatus.UNPROCESSABLE_ENTITY, "Model not found"),
    Code.MODEL_REFUSED: (HTTPStatus.UNPROCESSABLE_ENTITY, "The model is not supported"),
    Code.HUB_UNREACHABLE: (HTTPStatus.BAD_GATEWAY, "The model hub does not answer"),
    Code.HUB_BUSY: (HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests are waiting for the model hub"),
    Code.BUSY: (HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests of this kind are waiting"),
    Code.IDEMPOTENCY_CONFLICT: (HTTPStatus.UNPROCESSABLE_ENTITY, "The idempotency key was used with another body"),
    Code.IDEMPOTENCY_IN_FLIGHT: (HTTPStatus.CONFLICT, "A request with this idempotency key is in progress"),
    Code.LIMIT_REACHED: (HTTPStatus.CONFLICT, "Your tenant has reached a limit"),
    Code.CONFLICT: (HTTPStatus.CONFLICT, "The current state does not allow this"),
    Code.UNAVAILABLE: (HTTPStatus.SERVICE_UNAVAILABLE, "A part of the service is unavailable"),
    Code.INTERNAL: (HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error"),
}

RETRY_AFTER = {Code.UNAVAILABLE: 5, Code.HUB_BUSY: 5, Code.BUSY: 5, Code.IDEMPOTENCY_IN_FLIGHT: 1}
"""Value of the header Retry-After per error code, in seconds. A retry is then likely to succeed."""

SERVERS_DOWN = (OperationalError, InterfaceError, PoolTimeoutError, *STORAGE_ERRORS)

CLIENT_CLOSED_REQUEST = 499
"""Status in the log of a request whose client left before the response. Nobody receives it."""

log = structlog.get_logger(__name__)


class FlawView(BaseModel):
    """One rule that the request breaks."""

    param: str = Field(
        description="Where the error is: dotted path of a field, name of a parameter or header, or line of a file."
    )
    rule: str = Field(description="The rule that the value breaks.")
    value: str = Field(description="The value received, shortened.")
    way_out: str = Field(description="How to correct the request.")


class Problem(BaseModel):
    """The body of every error response."""

    type: str
    title: str
    status: int
    detail: str
    code: Code
    param: str | None = Field(description="`param` of the first entry of `errors`; `null` if there is none.")
    request_id: str
    errors: list[FlawView]


def problem(
    request: Request, code: Code, detail: str, flaws: Sequence[Flaw] = (), headers: dict[str, str] | None = None
) -> Response:
    """Return a problem report as a response."""
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
    """Return the JSON schemas of a problem report, by name."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema}


def responses(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the error responses with these codes."""
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
    """Install the exception handlers. Every error of a route or of the framework then becomes a problem report."""
    app.add_exception_handler(ProblemError, _problem_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(ClientDisconnect, abandoned)
    for error in SERVERS_DOWN:
        app.add_exception_handler(error, _server_down)


async def abandoned(_: Request, __: Exception) -> Response:
    """Return an empty response for a client that has left."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _problem_error(request: Request, error: Exception) -> Response:
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
    """Convert an error of the framework to a problem report: unknown path, method not allowed, or unreadable body."""
    assert isinstance(error, HTTPException)
    if isinstance(error, LimitError):
        response = await _problem_error(request, error.problem)
        response.headers["Connection"] = "close"  # do not wait for the rest of the body
        return response
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is no resource at {request.url.path}. GET /docs lists all operations."
        return problem(request, Code.NOT_FOUND, detail)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _methods(request)
        detail = f"{request.url.path} does not support {request.method}. Use {allowed}."
        return problem(request, Code.METHOD_NOT_ALLOWED, detail, headers={"Allow": allowed})
    flaw = Flaw("body", error.detail, "unreadable", "Send the body in the format that the header Content-Type names.")
    return problem(request, Code.INVALID_REQUEST, f"The body cannot be read: {error.detail}", (flaw,))


def _methods(request: Request) -> str:
    """Return all methods of a path. The framework itself reports only those of the first matching route."""
    paths = request.app.openapi()["paths"]
    match = next((path for path in paths if compile_path(path)[0].match(request.url.path)), None)
    methods = {method.upper() for method in paths[match]} if match else {"GET"}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def _server_down(request: Request, error: Exception) -> Response:
    log.error("server.down", error=str(error))
    return problem(
        request,
        Code.UNAVAILABLE,
        "The database or the object storage did not answer, or refused a request. Try again soon.",
    )
