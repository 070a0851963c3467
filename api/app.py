"""The FastAPI application: its routes, error handlers and middleware, and the dashboard mounted into it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

import core
from api import errors, reference
from api.dashboard.app import make_dashboard
from api.dashboard.render import ROOT
from api.deps import Services, make_services
from api.middleware import RequestMiddleware
from api.query import require_known_parameters
from api.routes import (
    actions,
    datasets,
    hub_token,
    imports,
    jobs,
    keys,
    models,
    operations,
    pushes,
    reports,
    webhooks,
    workers,
)
from core import bucket_owner
from core.errors import Code
from core.settings import Settings

DESCRIPTION = """Makes language models sparse and repairs them.

Upload a dataset, create a job with `POST /jobs`, follow it, and download a checkpoint that `transformers` loads.
Unknown fields and unknown query parameters are rejected. Every error response is a problem report (RFC 9457,
`application/problem+json`).
"""


log = structlog.get_logger(__name__)


class Api(FastAPI):
    """FastAPI with an OpenAPI document that includes the schemas of error responses (problem reports).

    FastAPI itself adds only schemas of JSON responses. Problem reports have the media type
    `application/problem+json`.
    """

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, including the schemas of a problem report."""
        document = super().openapi()
        document["components"]["schemas"] |= errors.schemas()
        return document


def routes() -> FastAPI:
    """Make the application without connections to servers. This is enough to generate the OpenAPI document."""
    app = Api(
        title="SEFT",
        version=core.__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=_lifespan,
    )
    errors.install(app)
    checked = [Depends(require_known_parameters)]
    for module in (jobs, actions, pushes, reports, datasets, imports, models, hub_token, keys, webhooks, workers):
        app.include_router(module.router, responses=errors.responses(*errors.GUARDED), dependencies=checked)
    unguarded = errors.responses(Code.INVALID_REQUEST, Code.INTERNAL)
    app.include_router(operations.router, responses=unguarded, dependencies=checked)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    for path in ("/", ROOT):
        app.add_api_route(path, _home, include_in_schema=False)
    return app


def _docs(request: Request) -> HTMLResponse:
    return HTMLResponse(reference.page(request.app.openapi()))


def _home() -> Response:
    """Redirect a browser from `/` to the dashboard."""
    return RedirectResponse(f"{ROOT}/")


def make_app(settings: Settings) -> FastAPI:
    """Make the application with these settings.

    Startup fails if the object storage does not answer, or if another service owns the bucket.
    """
    app = routes()
    app.state.services = make_services(settings)
    app.mount(ROOT, make_dashboard(app.state.services))
    app.add_middleware(RequestMiddleware, upload_bytes=settings.max_upload_bytes)
    return app


def _prepare_bucket(services: Services) -> None:
    services.storage.ensure_bucket()
    try:
        with services.sessions.begin() as session:
            service = bucket_owner.service_id(session)
    except errors.SERVERS_DOWN as error:  # the supervisor would stop all processes if this one did not start
        log.warning("bucket.owner_not_checked", error=str(error))
        return
    bucket_owner.require_own_bucket(services.storage, service)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services = app.state.services
    await run_sync(_prepare_bucket, services)
    yield
    services.engine.dispose()
    services.broker.close()
    services.limiter.close()
