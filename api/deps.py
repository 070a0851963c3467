"""What routes are given: the service's parts, and who is calling."""

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

READING = ("GET", "HEAD")
"""Every other method changes something."""
UPLOADS = 4
"""Datasets that are checked and stored at a time; others wait."""
PREVIEWS = 2
"""Tokenizers that are looked through at a time; others wait."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one running API. Nothing is connected before it is used."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    storage: Storage
    broker: Broker
    limiter: Limiter
    seals: Encryption
    hub_tokens: HubTokens
    models: ModelResolver
    catalogue: Catalogue
    intake: DatasetStore
    uploads: CapacityLimiter
    """Threads that datasets are checked and stored in: the other requests keep the rest."""
    previews: CapacityLimiter


def make_services(settings: Settings) -> Services:
    """The parts that these settings describe."""
    engine = make_engine(settings)
    sessions, storage = make_sessions(engine), Storage(settings)
    seals = Encryption(settings)
    hub_tokens = HubTokens(seals, sessions)
    door = ModelResolver(settings, sessions, storage, hub_tokens)
    return Services(
        settings=settings,
        engine=engine,
        sessions=sessions,
        storage=storage,
        intake=DatasetStore(settings, sessions, storage),
        broker=make_app(settings),
        limiter=Limiter(settings),
        seals=seals,
        hub_tokens=hub_tokens,
        models=door,
        catalogue=Catalogue(door, sessions, settings),
        uploads=CapacityLimiter(UPLOADS),
        previews=CapacityLimiter(PREVIEWS),
    )


async def get_services(request: Request) -> Services:
    """The services of the app that serves this request. Asynchronous, so that no thread is needed for it."""
    services: Services = request.app.state.services
    return services


CurrentServices = Annotated[Services, Depends(get_services)]
Bearer = HTTPBearer(auto_error=False, description="An API key, as `python -m api keys create` prints it.")


def authenticated(
    request: Request,
    services: CurrentServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(Bearer)],
) -> Caller:
    """The caller; or UNAUTHENTICATED, RATE_LIMITED, or FORBIDDEN where a key that may only read would change things."""
    return counted(request, services, _shown(services, credentials))


def scraping(
    request: Request,
    services: CurrentServices,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(Bearer)],
) -> Caller:
    """The caller, who may see figures of the whole service; else the errors of `authenticated`."""
    return counted(request, services, _shown(services, credentials), Scope.METRICS)


def _shown(services: Services, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    """The key that came with the request, or UNAUTHENTICATED."""
    if credentials is None:
        raise ProblemError(Code.UNAUTHENTICATED, "Send an API key: Authorization: Bearer seft_…")
    with services.sessions.begin() as session:
        key = keys.verify(session, credentials.credentials)
    if key is None:
        raise ProblemError(
            Code.UNAUTHENTICATED, "This API key is unknown or revoked. Ask the operator for another one."
        )
    return key


def counted(request: Request, services: Services, key: ApiKey, needed: Scope | None = None) -> Caller:
    """Whoever sends a request with this key; or RATE_LIMITED, or FORBIDDEN where its scope is less than `needed`.

    Where nothing is said, reading needs `read` and everything else `write`.
    """
    request.state.key_id = key.id
    if wait := services.limiter.take(key.id):
        limit = f"This key may send {services.settings.rate_limit:g} requests a second."
        raise ProblemError(Code.RATE_LIMITED, f"{limit} Try again in {ceil(wait)} s.", retry_after=ceil(wait))
    caller = Caller(key.tenant, key.id, Scope(key.scope), request.state.request_id)
    require_scope(caller, needed or (Scope.READ if request.method in READING else Scope.WRITE))
    return caller


Scraper = Annotated[Caller, Depends(scraping)]
Auth = Annotated[Caller, Depends(authenticated)]


def administrator(caller: Auth) -> Caller:
    """The caller, or FORBIDDEN."""
    require_scope(caller, Scope.ADMIN)
    return caller


Admin = Annotated[Caller, Depends(administrator)]


def require_scope(caller: Caller, needed: Scope) -> None:
    """FORBIDDEN where the caller's scope is less than `needed`."""
    if not caller.scope.allows(needed):
        raise ProblemError(
            Code.FORBIDDEN,
            f"This needs a key of scope {needed}; yours is of scope {caller.scope}. POST /keys makes one.",
        )


class RequireContentType:
    """A dependency: the body must have this media type, else UNSUPPORTED_MEDIA_TYPE."""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type

    async def __call__(self, content_type: Annotated[str, Header(include_in_schema=False)] = "") -> None:
        """Refuse every other type."""
        seen = content_type.partition(";")[0].strip().lower()
        if seen != self.media_type:
            flaw = Flaw(
                "Content-Type", f"must be {self.media_type}", repr(seen), f"Send the body as {self.media_type}."
            )
            raise ProblemError(Code.UNSUPPORTED_MEDIA_TYPE, f"The body must be {self.media_type}.", (flaw,))


JobId = Annotated[str, Path(description="Id of a job.", examples=["job_01jz5h4c8m2v9q7w3t6x0y1b2d"])]
Limit = Annotated[int, Query(ge=1, le=100, description="Entries of one page, 1 to 100.")]
