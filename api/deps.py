"""Dependencies that FastAPI injects into routes and pages: services, the authenticated caller, common parameters."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends, Path, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker
from typing_extensions import override

from api.changes import JobChanges
from api.concurrency import ConcurrencyLimit, WorkQueue
from api.connections import network_of
from api.limits import ShallowRequest, require_media_type
from api.readiness import Readiness
from api.unknown_callers import UnknownCallers
from core.access import keys
from core.access.audit import Caller
from core.access.encryption import Encryption
from core.access.hub_tokens import HubTokens
from core.access.keys import Scope
from core.access.rates import Limiter
from core.datasets.uploads import DatasetStore
from core.errors import Code, ProblemError
from core.infra.database import make_engine, make_sessions
from core.infra.queue import Broker, make_app
from core.infra.storage import Storage
from core.models.catalogue import Catalogue
from core.models.resolver import ModelResolver
from core.settings import Settings
from core.tables import ApiKey

READ_METHODS = ("GET", "HEAD")
"""HTTP methods that need a key of scope `read`. All other methods need `write`."""
TENANT_UPLOADS = 8
"""Maximum number of dataset uploads that a tenant sends at the same time. Each may fill `max_upload_bytes` of disk."""
PREVIEWS = 2
"""Number of previews that run at the same time. Each starts a process that may take 4 GiB of memory."""
EVENT_STREAM = "text/event-stream"
KEYS_PER_NETWORK = 4
"""The limit of open waits of a network is the limit of one key times this number."""


@dataclass(frozen=True, slots=True)
class Services:
    """The clients of one API process for the database, the storage, the broker and the hub.

    Each connects when it is first used.
    """

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    storage: Storage
    broker: Broker
    limiter: Limiter
    encryption: Encryption
    hub_tokens: HubTokens
    models: ModelResolver
    catalogue: Catalogue
    dataset_store: DatasetStore
    open_uploads: ConcurrencyLimit
    uploads: WorkQueue
    """Uploads that were received and are checked, each in a thread."""
    previews: WorkQueue
    readiness: Readiness
    changes: JobChanges
    key_waits: ConcurrencyLimit
    network_waits: ConcurrencyLimit
    unknown_callers: UnknownCallers


def make_services(settings: Settings) -> Services:
    """Make the services for these settings."""
    engine = make_engine(settings)
    sessions, storage = make_sessions(engine), Storage(settings)
    encryption = Encryption(settings)
    hub_tokens, broker = HubTokens(encryption, sessions), make_app(settings)
    models = ModelResolver(settings, sessions, storage, hub_tokens)
    return Services(
        settings=settings,
        engine=engine,
        sessions=sessions,
        storage=storage,
        dataset_store=DatasetStore(settings, sessions, storage),
        broker=broker,
        limiter=Limiter(settings),
        encryption=encryption,
        hub_tokens=hub_tokens,
        models=models,
        catalogue=Catalogue(models, sessions, settings),
        open_uploads=ConcurrencyLimit(TENANT_UPLOADS, "Uploads are limited per tenant"),
        uploads=WorkQueue("uploads", running=4, waiting=64, per_tenant=TENANT_UPLOADS),
        previews=WorkQueue("previews", running=PREVIEWS, waiting=16, per_tenant=6),
        readiness=Readiness(engine, storage, broker),
        changes=JobChanges(sessions),
        key_waits=ConcurrencyLimit(settings.key_waits, "Requests with `wait` and event streams are limited per key"),
        network_waits=ConcurrencyLimit(
            KEYS_PER_NETWORK * settings.key_waits,
            "Requests with `wait` and event streams are limited per network address",
        ),
        unknown_callers=UnknownCallers(limited=bool(settings.rate_limit)),
    )


async def get_services(request: Request) -> Services:
    """Return the services of the app that serves this request.

    The function is async, because FastAPI would run a sync one in a thread.
    """
    services: Services = request.app.state.services
    return services


CurrentServices = Annotated[Services, Depends(get_services)]
Bearer = HTTPBearer(auto_error=False, description="API key, as printed by `python -m api keys create`.")


async def sent_key(
    request: Request,
    services: CurrentServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(Bearer)],
) -> str:
    """Return the API key that the request has sent. It is not verified yet.

    Raises UNAUTHENTICATED if there is none, and RATE_LIMITED if the network has sent too many unknown keys. It is
    async, so a refused request takes no thread for which other requests would have to wait.
    """
    if credentials is None:
        raise ProblemError(
            Code.UNAUTHENTICATED, "The request has no API key. Send one in the header: Authorization: Bearer seft_…"
        )
    services.unknown_callers.require_below_limit(network_of(request), credentials.credentials)
    return credentials.credentials


SentKey = Annotated[str, Depends(sent_key)]


class JsonRoute(APIRoute):
    """A route whose body, if it has one, must be JSON.

    FastAPI parses the body before it resolves the dependencies. So this route first finds the caller, with all checks
    of `authenticated`. It also checks how deep the body is nested before parsing it.
    """

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_checked(request: Request) -> Response:
            if self.body_field is not None:
                services = await get_services(request)
                secret = await sent_key(request, services, await Bearer(request))
                request.state.caller = await run_sync(authenticated, request, services, secret)
                require_media_type(request, "application/json")
            return await handle(ShallowRequest(request.scope, request.receive))

        return handle_checked


def authenticated(request: Request, services: CurrentServices, secret: SentKey) -> Caller:
    """Return the caller: the key of the request and its tenant.

    Raises UNAUTHENTICATED if the key is unknown, RATE_LIMITED if it has made too many requests, and FORBIDDEN if the
    method needs a higher scope than the key has.
    """
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:  # JsonRoute has authenticated the request
        return known
    caller = make_caller(request, services, _verified(request, services, secret))
    require_scope(caller, scope_for(request))
    return caller


def scraping(request: Request, services: CurrentServices, secret: SentKey) -> Caller:
    """Return the caller if its key may read the metrics of the whole service.

    Raises the same errors as `authenticated`.
    """
    caller = make_caller(request, services, _verified(request, services, secret))
    require_scope(caller, Scope.METRICS)
    return caller


def _verified(request: Request, services: Services, secret: str) -> ApiKey:
    """Return the row of an API key.

    Raises UNAUTHENTICATED if the key is unknown or revoked, and RATE_LIMITED as `sent_key` does. The limit
    is checked again, because many requests can pass the check of `sent_key` before the first of them is verified.
    """
    services.unknown_callers.require_below_limit(network_of(request), secret)
    with services.sessions.begin() as session:
        key = keys.verify(session, secret)
    services.unknown_callers.record(network_of(request), secret, valid=key is not None)
    if key is None:
        raise ProblemError(Code.UNAUTHENTICATED, "This API key is unknown or revoked. Ask the operator for a new one.")
    return key


def make_caller(request: Request, services: Services, key: ApiKey) -> Caller:
    """Count the request against the key's rate limit and return its caller. The scope of the key is not checked.

    Raises RATE_LIMITED if the key has made too many requests.
    """
    request.state.key_id = key.id
    if wait := services.limiter.take(key.id):
        limit = f"This key may send {services.settings.rate_limit:g} requests per second."
        raise ProblemError(Code.RATE_LIMITED, f"{limit} Retry in {ceil(wait)} s.", retry_after=ceil(wait))
    return Caller(key.tenant, key.id, Scope(key.scope), request.state.request_id)


def scope_for(request: Request) -> Scope:
    """Return the scope that a request with this method needs: `read` for methods that only read, else `write`."""
    return Scope.READ if request.method in READ_METHODS else Scope.WRITE


Scraper = Annotated[Caller, Depends(scraping)]
Auth = Annotated[Caller, Depends(authenticated)]


async def network_wait(request: Request, services: CurrentServices) -> AsyncIterator[None]:
    """If the request can wait, count it as an open wait of its network until the response is sent.

    Raises RATE_LIMITED if the network has too many. This is checked before the key, so a refusal costs no thread.
    """
    with services.network_waits.hold(network_of(request)) if _waits(request) else nullcontext():
        yield


async def key_wait(request: Request, services: CurrentServices, secret: SentKey) -> AsyncIterator[None]:
    """If the request can wait, count it as an open wait of its key until the response is sent.

    Raises RATE_LIMITED if the key has too many. This is checked before the key is verified, as in `network_wait`.
    """
    with services.key_waits.hold(keys.digest(secret)) if _waits(request) else nullcontext():
        yield


def _waits(request: Request) -> bool:
    """Return whether this is a request with `wait` or for an event stream."""
    stream = EVENT_STREAM in request.headers.get("accept", "")
    return stream or request.query_params.get("wait", "0") != "0"


LIMITED_WAITS = [Depends(network_wait), Depends(key_wait)]
"""Dependencies of operations that can wait."""


def administrator(caller: Auth) -> Caller:
    """Return the caller. Raises FORBIDDEN if the scope of its key is not `admin`."""
    require_scope(caller, Scope.ADMIN)
    return caller


Admin = Annotated[Caller, Depends(administrator)]


def require_scope(caller: Caller, needed: Scope) -> None:
    """Raise FORBIDDEN if the caller's scope does not include `needed`."""
    if not caller.scope.allows(needed):
        creator = "The operator" if needed is Scope.METRICS else "A key with the scope admin"
        command = "`python -m api keys create --scope metrics --name NAME`" if needed is Scope.METRICS else "POST /keys"
        raise ProblemError(
            Code.FORBIDDEN,
            f"This request needs an API key with the scope {needed}. Your key has the scope {caller.scope}. {creator}"
            f" can create one with {command}.",
        )


JobId = Annotated[str, Path(description="Job id.", examples=["job_01jz5h4c8m2v9q7w3t6x0y1b2d"])]
Limit = Annotated[int, Query(ge=1, le=100, description="Largest number of rows in the page, 1 to 100.")]
