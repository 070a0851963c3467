"""Dependencies that FastAPI injects into routes and pages: services, the authenticated caller, common parameters."""

from dataclasses import dataclass
from math import ceil
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Header, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from core.access import keys
from core.access.audit import Caller
from core.access.encryption import Encryption
from core.access.hub_tokens import HubTokens
from core.access.keys import Scope
from core.access.rates import Limiter
from core.datasets.uploads import DatasetStore
from core.errors import Code, Flaw, ProblemError
from core.infra.database import make_engine, make_sessions
from core.infra.queue import Broker, make_app
from core.infra.storage import Storage
from core.models.catalogue import Catalogue
from core.models.resolver import ModelResolver
from core.settings import Settings
from core.tables import ApiKey

READ_METHODS = ("GET", "HEAD")
"""HTTP methods that need a key of scope `read`. All other methods need `write`."""
UPLOADS = 4
"""Number of dataset uploads that are processed at the same time. Further uploads wait."""
PREVIEWS = 2
"""Number of previews that are computed at the same time. Further previews wait."""


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
    uploads: CapacityLimiter
    """Limits the threads that uploads occupy, so that other requests still get a thread."""
    previews: CapacityLimiter
    """Limits the threads that previews occupy, so that other requests still get a thread."""


def make_services(settings: Settings) -> Services:
    """Make the services for these settings."""
    engine = make_engine(settings)
    sessions, storage = make_sessions(engine), Storage(settings)
    encryption = Encryption(settings)
    hub_tokens = HubTokens(encryption, sessions)
    models = ModelResolver(settings, sessions, storage, hub_tokens)
    return Services(
        settings=settings,
        engine=engine,
        sessions=sessions,
        storage=storage,
        dataset_store=DatasetStore(settings, sessions, storage),
        broker=make_app(settings),
        limiter=Limiter(settings),
        encryption=encryption,
        hub_tokens=hub_tokens,
        models=models,
        catalogue=Catalogue(models, sessions, settings),
        uploads=CapacityLimiter(UPLOADS),
        previews=CapacityLimiter(PREVIEWS),
    )


async def get_services(request: Request) -> Services:
    """Return the services of the app that serves this request.

    The function is async, because FastAPI would run a sync one in a thread.
    """
    services: Services = request.app.state.services
    return services


CurrentServices = Annotated[Services, Depends(get_services)]
Bearer = HTTPBearer(auto_error=False, description="API key, as printed by `python -m api keys create`.")


def authenticated(
    request: Request,
    services: CurrentServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(Bearer)],
) -> Caller:
    """Return the caller: the key of the request and its tenant.

    Raises UNAUTHENTICATED if the request has no valid key, RATE_LIMITED if the key has made too many requests, and
    FORBIDDEN if the method needs a higher scope than the key has.
    """
    return make_caller(request, services, _verified(services, credentials))


def scraping(
    request: Request,
    services: CurrentServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(Bearer)],
) -> Caller:
    """Return the caller if its key may read the metrics of the whole service.

    Raises the same errors as `authenticated`.
    """
    return make_caller(request, services, _verified(services, credentials), Scope.METRICS)


def _verified(services: Services, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    """Return the API key of the request. Raises UNAUTHENTICATED if the request has no valid key."""
    if credentials is None:
        raise ProblemError(
            Code.UNAUTHENTICATED, "The request has no API key. Send one in the header: Authorization: Bearer seft_…"
        )
    with services.sessions.begin() as session:
        key = keys.verify(session, credentials.credentials)
    if key is None:
        raise ProblemError(Code.UNAUTHENTICATED, "This API key is unknown or revoked. Ask the operator for a new one.")
    return key


def make_caller(request: Request, services: Services, key: ApiKey, needed: Scope | None = None) -> Caller:
    """Count the request against the key's rate limit and return its caller.

    Raises RATE_LIMITED if the key has made too many requests, and FORBIDDEN if its scope does not include `needed`.
    By default, `needed` is `read` for methods that only read, and `write` for all others.
    """
    request.state.key_id = key.id
    if wait := services.limiter.take(key.id):
        limit = f"This key may send {services.settings.rate_limit:g} requests per second."
        raise ProblemError(Code.RATE_LIMITED, f"{limit} Retry in {ceil(wait)} s.", retry_after=ceil(wait))
    caller = Caller(key.tenant, key.id, Scope(key.scope), request.state.request_id)
    require_scope(caller, needed or (Scope.READ if request.method in READ_METHODS else Scope.WRITE))
    return caller


Scraper = Annotated[Caller, Depends(scraping)]
Auth = Annotated[Caller, Depends(authenticated)]


def administrator(caller: Auth) -> Caller:
    """Return the caller. Raises FORBIDDEN if the scope of its key is not `admin`."""
    require_scope(caller, Scope.ADMIN)
    return caller


Admin = Annotated[Caller, Depends(administrator)]


def require_scope(caller: Caller, needed: Scope) -> None:
    """Raise FORBIDDEN if the caller's scope does not include `needed`."""
    if not caller.scope.allows(needed):
        raise ProblemError(
            Code.FORBIDDEN,
            f"This request needs an API key with the scope {needed}. Your key has the scope {caller.scope}. A key with"
            " the scope admin can create one with POST /keys.",
        )


class RequireContentType:
    """Dependency that raises UNSUPPORTED_MEDIA_TYPE unless the request body has the expected media type."""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    async def __call__(self, content_type: Annotated[str, Header(include_in_schema=False)] = "") -> None:
        """Check the media type of one request."""
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type != self.media_type:
            flaw = Flaw(
                "Content-Type", f"must be {self.media_type}", repr(media_type), f"Send the body as {self.media_type}."
            )
            raise ProblemError(
                Code.UNSUPPORTED_MEDIA_TYPE,
                f"The Content-Type must be {self.media_type}; it is {media_type!r}.",
                (flaw,),
            )


JobId = Annotated[str, Path(description="Job id.", examples=["job_01jz5h4c8m2v9q7w3t6x0y1b2d"])]
Limit = Annotated[int, Query(ge=1, le=100, description="Largest number of rows in the page, 1 to 100.")]
