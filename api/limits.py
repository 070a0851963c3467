"""Limits on request bodies: media type, size, speed, and nesting of JSON.

FastAPI turns any exception while it reads a body into status 400, except its own HTTPException. So the error for an
exceeded limit is a subclass of HTTPException.
"""

import json
import re
import time
from typing import Any

import anyio
from fastapi import HTTPException, Request
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope
from typing_extensions import override

from core.errors import Code, Flaw, ProblemError

BODY_BYTES = 1 << 18
"""Maximum bytes of a JSON body or a form. Every valid one is smaller."""
SIGN_IN_BYTES = 1 << 14
"""Maximum bytes of the form of the sign-in page, which is read before anything is known about the sender."""
JSON_DEPTH = 32
"""Maximum depth of nested objects and lists in a JSON body."""
PATIENCE_SECONDS = 30.0
"""Seconds after the start of a body during which `SLOWEST` is not checked."""
SLOWEST = 10_000.0
"""Minimum average speed of a body, in bytes per second."""

NO_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[^\[\]{}"]+', re.DOTALL)


class LimitError(HTTPException):
    """A body exceeds a limit.

    Contains the ProblemError to report, because FastAPI would turn a raised ProblemError into status 400.
    """

    def __init__(self, problem: ProblemError) -> None:
        super().__init__(400)
        self.problem = problem


class ShallowRequest(Request):
    """A request whose JSON is parsed only if it is not nested deeply. Deep nesting is expensive to parse."""

    @override
    async def json(self) -> Any:
        body = await self.body()
        _require_utf8(body)
        _require_shallow(body)
        return await super().json()


def require_media_type(request: Request, expected: str) -> None:
    """Raise UNSUPPORTED_MEDIA_TYPE unless the request body has the expected media type."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != expected:
        flaw = Flaw("Content-Type", f"must be {expected}", repr(media_type), f"Send the body as {expected}.")
        detail = f"The Content-Type must be {expected}; it is {media_type!r}."
        raise ProblemError(Code.UNSUPPORTED_MEDIA_TYPE, detail, (flaw,))


def limited(scope: Scope, receive: Receive, most: int, *, upload: bool = False) -> Receive:
    """Return a `receive` function that raises LimitError if the body exceeds `most` bytes or arrives too slowly.

    `upload` says whether the body is a dataset, which can also be sent in parts.
    """
    length, received, ended = Headers(scope=scope).get("content-length", ""), 0, False
    began = time.monotonic()

    async def receive_limited() -> Message:
        nonlocal received, ended
        if ended:
            return await receive()
        if length.isdecimal() and int(length) > most:
            raise _too_large(most, upload=upload)
        try:
            with anyio.fail_after(began + PATIENCE_SECONDS + received / SLOWEST - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise _too_slow(received, upload=upload) from error
        received += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if received > most:
            raise _too_large(most, upload=upload)
        return message

    return receive_limited


def _require_utf8(body: bytes) -> None:
    """Raise JSONDecodeError for other encodings of JSON, whose bytes `_require_shallow` would read wrongly."""
    if not json.detect_encoding(body).startswith("utf-8"):
        raise json.JSONDecodeError("it is not in UTF-8", "", 0)


def _require_shallow(body: bytes) -> None:
    depth = 0
    for bracket in NO_BRACKETS.sub(b"", body).decode("ascii"):
        depth += 1 if bracket in "[{" else -1
        if depth > JSON_DEPTH:
            raise json.JSONDecodeError(f"it has more than {JSON_DEPTH} nested levels", "", 0)


def _too_large(most: int, *, upload: bool) -> LimitError:
    other = "Send a large dataset with POST /imports, or ask the operator to raise SEFT_MAX_UPLOAD_BYTES."
    way_out = f"Send less. {other}" if upload else "Send less."
    flaw = Flaw("body", f"must have at most {most} bytes for this operation", "larger", way_out)
    message = f"The body must have at most {most} bytes for this operation. This body is larger."
    return LimitError(ProblemError(Code.TOO_LARGE, message, (flaw,)))


def _too_slow(received: int, *, upload: bool) -> LimitError:
    rule = (
        f"must arrive at {SLOWEST:g} or more bytes per second on average, after the first {PATIENCE_SECONDS:g} seconds"
    )
    way_out = f"Use a faster connection{', or send the file in parts with POST /imports' if upload else ''}."
    flaw = Flaw("body", rule, f"{received} bytes so far", way_out)
    return LimitError(ProblemError(Code.TOO_SLOW, "The body arrived too slowly or is incomplete.", (flaw,)))
