"""The dashboard's application, mounted into the API: its pages, its error pages and its response headers."""

import re
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard import sign_in
from api.dashboard.pages import compare, datasets, job, jobs, keys, models, new_job, overview, webhooks, workers
from api.dashboard.render import ASSETS, ROOT, asset, go, page
from api.dashboard.visitors import FormRefusedError, SignInNeededError
from api.deps import Services
from api.errors import RETRY_AFTER, SERVERS_DOWN, TABLE, abandoned
from api.limits import LimitError
from core.errors import Code, ProblemError
from core.request_fields import broken_rule

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
FRAMEWORK_CODES = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED}
"""Error code per HTTP status, for errors of the framework. Any other status means that the body was unreadable."""
LISTED_BY_API = re.compile(r" [^.]*\bGET /[^.]*\.$")
"""The sentence of an error that names the operation of the API with the list of the objects. Pages leave it out."""
ASSET_CACHE = "public, max-age=31536000, immutable"


def make_dashboard(services: Services) -> ASGIApp:
    """Build the dashboard application on these services."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.services = services
    for module in (sign_in, overview, jobs, new_job, compare, job, datasets, models, workers, webhooks, keys):
        app.include_router(module.router)
    app.mount("/assets", Assets(directory=ASSETS))
    app.add_exception_handler(SignInNeededError, _redirect_to_sign_in)
    app.add_exception_handler(ProblemError, _problem_page)
    app.add_exception_handler(HTTPException, _framework_error_page)
    app.add_exception_handler(RequestValidationError, _invalid_request_page)
    app.add_exception_handler(ClientDisconnect, abandoned)
    app.add_exception_handler(Exception, _internal_error_page)
    for error in SERVERS_DOWN:
        app.add_exception_handler(error, _unavailable_page)
    return SecurityHeaders(app)


class Assets(StaticFiles):
    """Static files. Browsers cache a file permanently if the URL contains the hash of its content.

    During an update, a page of one version can ask a process of another version for a file.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file with a header that says whether browsers can cache it permanently."""
        response = await super().get_response(path, scope)
        known = asset(path).endswith(f"?{scope['query_string'].decode('latin-1')}")
        response.headers["Cache-Control"] = ASSET_CACHE if known else "no-cache"
        return response


class SecurityHeaders:
    """ASGI middleware that adds the security headers to every response.

    If the token of the session was rotated during the request, it also sets the session cookie again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if token := scope.get("state", {}).get("fresh_token"):
                    headers.append("Set-Cookie", sign_in.cookie(Request(scope), token))
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def _redirect_to_sign_in(request: Request, _: Exception) -> Response:
    if request.headers.get("hx-request"):
        # A redirect would replace only a part of the page. A reload of the whole page leads to the sign-in page.
        return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Refresh": "true"})
    if request.headers.get("accept", "").startswith("application/json"):
        return Response(status_code=HTTPStatus.UNAUTHORIZED)
    if request.method != "GET":
        # The form was not processed. Its address may have no page, so signing in leads to the page with the form.
        back = sign_in.page_with_form(request)
        return page(request, None, "sign_in.html", status=HTTPStatus.UNAUTHORIZED, back=back, rejected=False)
    return RedirectResponse(f"{ROOT}/sign-in?{sign_in.back_query(request)}", HTTPStatus.SEE_OTHER)


def _error_page(request: Request, code: Code, detail: str, *, refused_form: bool = False) -> Response:
    status, title = TABLE[code]
    return page(
        request,
        None,
        "problem.html",
        status=int(status),
        title="The form was not processed" if refused_form else title,
        detail=detail,
        code=code,
        form=sign_in.page_with_form(request) if refused_form else "",
        # A key of scope `metrics` sees only this page, so the page lets it sign out.
        csrf=getattr(request.state, "csrf", None),
    )


async def _problem_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    detail = LISTED_BY_API.sub("", error.message) if error.code is Code.NOT_FOUND else error.message
    response = _error_page(request, error.code, detail, refused_form=isinstance(error, FormRefusedError))
    if seconds := error.retry_after or RETRY_AFTER.get(error.code):
        response.headers["Retry-After"] = str(seconds)
    return response


async def _framework_error_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, LimitError):
        return await _problem_page(request, error.problem)
    code = FRAMEWORK_CODES.get(error.status_code, Code.INVALID_REQUEST)
    if code is Code.METHOD_NOT_ALLOWED and request.method == "GET":
        # The address of a form, such as /jobs/job_1/push. The page of the job has the form.
        return go(request.url.path.removeprefix(ROOT).rpartition("/")[0] or "/")
    detail = "This page does not exist." if code is Code.NOT_FOUND else str(error.detail)
    return _error_page(request, code, detail)


async def _invalid_request_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(f"{entry['loc'][-1]}: {broken_rule(entry)}" for entry in error.errors())
    return _error_page(request, Code.INVALID_REQUEST, detail)


async def _internal_error_page(request: Request, _: Exception) -> Response:
    return _error_page(
        request, Code.INTERNAL, "An unexpected error occurred. The log has details under this request ID."
    )


async def _unavailable_page(request: Request, _: Exception) -> Response:
    return _error_page(
        request, Code.UNAVAILABLE, "The database or the object storage does not respond. Try again soon."
    )
