"""The dashboard's application, mounted into the API's: its pages, its errors as pages, its headers."""

from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard import sign_in
from api.dashboard.pages import compare, datasets, job, jobs, keys, models, new_job, overview, webhooks, workers
from api.dashboard.render import ASSETS, ROOT, page
from api.dashboard.visitors import SignInNeededError
from api.deps import Services
from api.errors import SERVERS_DOWN, TABLE
from api.limits import LimitError
from core.errors import Code, ProblemError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FRAMEWORK = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}
"""What the framework raises by itself; whatever else it raises is about a body that it cannot read."""
ASSET_CACHE = "public, max-age=31536000, immutable"


def make_dashboard(services: Services) -> ASGIApp:
    """The application over these services."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.services = services
    for module in (sign_in, overview, jobs, new_job, compare, job, datasets, models, workers, webhooks, keys):
        app.include_router(module.router)
    app.mount("/assets", Assets(directory=ASSETS))
    app.add_exception_handler(SignInNeededError, _to_sign_in)
    app.add_exception_handler(ProblemError, _told)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _broken)
    for error in SERVERS_DOWN:
        app.add_exception_handler(error, _server_down)
    return Guarded(app)


class Assets(StaticFiles):
    """Files whose address changes with their content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, to be kept for good."""
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = ASSET_CACHE
        return answer


class Guarded:
    """ASGI middleware: the headers that every answer has, and the browser's new token where it got one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if fresh := scope.get("state", {}).get("fresh_token"):
                    headers.append("Set-Cookie", sign_in.cookie(Request(scope), fresh))
            await send(message)

        await self.app(scope, receive, send_guarded)


async def _to_sign_in(request: Request, _: Exception) -> Response:
    if request.headers.get("hx-request"):
        # The page that polls is loaded anew, and leads there.
        return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Refresh": "true"})
    if request.method != "GET" or request.headers.get("accept", "").startswith("application/json"):
        return Response(status_code=HTTPStatus.UNAUTHORIZED)
    return RedirectResponse(f"{ROOT}/sign-in?{sign_in.back_to(request)}", HTTPStatus.SEE_OTHER)


def _problem(request: Request, code: Code, detail: str) -> Response:
    status, title = TABLE[code]
    return page(request, None, "problem.html", status=int(status), title=title, detail=detail, code=code)


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    answer = _problem(request, error.code, error.message)
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, LimitError):
        return await _told(request, error.problem)
    code = FRAMEWORK.get(error.status_code, Code.INVALID_REQUEST)
    detail = "There is no such page." if code is Code.NOT_FOUND else str(error.detail)
    return _problem(request, code, detail)


async def _broken(request: Request, _: Exception) -> Response:
    return _problem(
        request, Code.INTERNAL, "Something unforeseen happened. The log has the rest under this request's id."
    )


async def _server_down(request: Request, _: Exception) -> Response:
    return _problem(request, Code.UNAVAILABLE, "The database or the object storage does not answer. Try again soon.")
