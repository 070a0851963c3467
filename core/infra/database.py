"""The engine and the sessions. No query lives here, and nothing is made at import."""

from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from core.settings import Settings

STATEMENT_SECONDS = 30
"""No statement of ours is slow; one that is waits for something that will not come."""
SILENCE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""A server of which nothing is heard for 20 seconds is away. Without these the kernel waits for a quarter hour."""


def url(settings: Settings) -> URL:
    """The database's address, for the one driver that is used."""
    return make_url(str(settings.database_url)).set(drivername="postgresql+psycopg")


def make_engine(settings: Settings) -> Engine:
    """A pool of connections that notices a restarted server."""
    limit = f"{STATEMENT_SECONDS}s"
    engine = create_engine(
        url(settings),
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        pool_pre_ping=True,
        hide_parameters=True,  # errors are logged, and the values are a tenant's
        connect_args={
            "connect_timeout": 5,
            **SILENCE,
            "options": f"-c timezone=UTC -c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit}",
        },
    )
    event.listen(engine, "handle_error", _read_only_is_away)
    return engine


def _read_only_is_away(context: ExceptionContext) -> None:
    """A server that another one has taken over from takes no writes: its connections are as good as broken."""
    if isinstance(context.original_exception, ReadOnlySqlTransaction):
        context.is_disconnect = True
        raise OperationalError(context.statement, None, context.original_exception, hide_parameters=True)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Use as `with sessions.begin() as session:`; rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)
