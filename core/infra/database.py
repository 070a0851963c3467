"""Create the database engine and its sessions. This module has no queries, and importing it connects to nothing."""

from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from core.settings import Settings

STATEMENT_SECONDS = 30
"""Timeout of a statement. All our statements are fast; a slow one waits for a lock."""
KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""Connection options that drop a silent server after 20 seconds. By default the kernel waits for about 15 minutes."""


def url(settings: Settings) -> URL:
    """Return the URL of the database, with the driver psycopg."""
    return make_url(str(settings.database_url)).set(drivername="postgresql+psycopg")


def make_engine(settings: Settings) -> Engine:
    """Create an engine whose connection pool detects a restarted server."""
    limit = f"{STATEMENT_SECONDS}s"
    engine = create_engine(
        url(settings),
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        pool_pre_ping=True,
        hide_parameters=True,  # errors are logged, and parameters hold tenants' data
        connect_args={
            "connect_timeout": 5,
            **KEEPALIVE,
            "options": f"-c timezone=UTC -c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit}",
        },
    )
    event.listen(engine, "handle_error", _disconnect_if_read_only)
    return engine


def _disconnect_if_read_only(context: ExceptionContext) -> None:
    """Treat a read-only server as disconnected. After a failover, the old primary rejects writes."""
    if isinstance(context.original_exception, ReadOnlySqlTransaction):
        context.is_disconnect = True
        raise OperationalError(context.statement, None, context.original_exception, hide_parameters=True)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Create the session factory. Use `with sessions.begin() as session:`. Rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)
