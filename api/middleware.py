"""Middleware around every request: assign the request id, limit the body, log the request, and report a crash."""

import time

import structlog
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard.render import ROOT
from api.errors import problem
from api.limits import BODY_BYTES, SIGN_IN_BYTES, limited
from core import ids
from core.errors import Code

UPLOADS = ("/datasets", f"{ROOT}/datasets")
"""Paths that accept dataset uploads by POST."""
SIGN_IN = f"{ROOT}/sign-in"

log = structlog.get_logger(__name__)


class RequestMiddleware:
    """ASGI middleware around every request.

    The limit of a dataset upload is `upload_bytes`, that of the sign-in form `SIGN_IN_BYTES`, and that of every other
    body `BODY_BYTES`. A HEAD request is processed as GET, and the server sends its response without the content (RFC
    9110, section 9.3.2). It opens no event stream, because the next request on the connection would have to wait for
    the end of the stream.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app = app
        self.upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request. Other ASGI events are passed through unchanged."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = ids.new("req")
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(_as_get(scope), self._limited(scope, receive), send_with_id)
        except Exception:
            log.exception("request.broken")
            if not status:
                detail = "An unexpected error occurred. Send the request id to the operator; the log has the details."
                await problem(Request(scope), Code.INTERNAL, detail)(scope, receive, send_with_id)
        finally:
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * (time.perf_counter() - began), 1),
                key=scope["state"].get("key_id"),
            )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        upload = scope["method"] == "POST" and scope["path"] in UPLOADS
        most = SIGN_IN_BYTES if scope["path"] == SIGN_IN else self.upload_bytes if upload else BODY_BYTES
        return limited(scope, receive, most, upload=upload)


def _as_get(scope: Scope) -> Scope:
    """Return the scope of a GET request in place of the scope of a HEAD request. Other scopes do not change."""
    if scope["method"] != "HEAD":
        return scope
    headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
    return {**scope, "method": "GET", "headers": headers}
