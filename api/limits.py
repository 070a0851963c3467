"""What a request may weigh: bytes of its body, how slowly they may come, how deep its JSON may nest.

The framework answers 400 to whatever else is raised while it reads a body, so a limit is told by its HTTPException.
"""

import json
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope
from typing_extensions import override

from core.errors import Code, Flaw, ProblemError

BODY_BYTES = 1 << 20
"""More than any JSON that this API understands."""
JSON_DEPTH = 32
PATIENCE_SECONDS = 30.0
SLOWEST = 10_000.0
"""Bytes a second that a body must bring in the mean, after the first `PATIENCE_SECONDS`."""

NO_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[^\[\]{}"]+', re.DOTALL)


class LimitError(HTTPException):
    """A limit was passed; the way for a ProblemError through the framework's reading of a body."""

    def __init__(self, problem: ProblemError) -> None:
        super().__init__(400)
        self.problem = problem


class JsonRoute(APIRoute):
    """A route whose JSON body is looked at before it is parsed: what is nested deeply costs more than it weighs."""

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_shallow(request: Request) -> Response:
            return await handle(_ShallowRequest(request.scope, request.receive))

        return handle_shallow


class _ShallowRequest(Request):
    @override
    async def json(self) -> Any:
        _check_depth(await self.body())
        return await super().json()


def limited(scope: Scope, receive: Receive, most: int) -> Receive:
    """A `receive` that raises LimitError once the body is longer than `most` bytes, or comes too slowly."""
    stated, seen, ended = Headers(scope=scope).get("content-length", ""), 0, False
    began = time.monotonic()

    async def receive_limited() -> Message:
        nonlocal seen, ended
        if ended:
            return await receive()
        if stated.isdecimal() and int(stated) > most:
            raise _too_large(most)
        try:
            with anyio.fail_after(began + PATIENCE_SECONDS + seen / SLOWEST - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise _too_slow(seen) from error
        seen += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if seen > most:
            raise _too_large(most)
        return message

    return receive_limited


def _check_depth(body: bytes) -> None:
    depth = 0
    for bracket in NO_BRACKETS.sub(b"", body).decode("ascii"):
        depth += 1 if bracket in "[{" else -1
        if depth > JSON_DEPTH:
            raise json.JSONDecodeError(f"nested more than {JSON_DEPTH} deep", "", 0)


def _too_large(most: int) -> LimitError:
    way_out = "Split it, or have the operator raise the limit."
    flaw = Flaw("body", f"has at most {most} bytes at this address", "more", way_out)
    return LimitError(ProblemError(Code.TOO_LARGE, f"A body at this address has at most {most} bytes.", (flaw,)))


def _too_slow(seen: int) -> LimitError:
    rule = f"brings {SLOWEST:g} bytes a second in the mean, after {PATIENCE_SECONDS:g} seconds"
    flaw = Flaw("body", rule, f"{seen} bytes so far", "Send it again over a better connection, or in parts.")
    return LimitError(ProblemError(Code.TOO_SLOW, "The body came too slowly, or not all of it.", (flaw,)))
