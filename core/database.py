"""The engine and the sessions. No query lives here, and nothing is made at import."""

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.orm import Session, sessionmaker

from core.settings import Settings

STATEMENT_SECONDS = 30
"""No statement of ours is slow; one that is waits for something that will not come."""


def url(settings: Settings) -> URL:
    """The database's address, for the one driver that is used."""
    return make_url(str(settings.database_url)).set(drivername="postgresql+psycopg")


def make_engine(settings: Settings) -> Engine:
    """A pool of connections that notices a restarted server."""
    limit = f"{STATEMENT_SECONDS}s"
    return create_engine(
        url(settings),
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        pool_pre_ping=True,
        hide_parameters=True,  # errors are logged, and the values are a tenant's
        connect_args={
            "connect_timeout": 5,
            "options": f"-c timezone=UTC -c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit}",
        },
    )


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Use as `with sessions.begin() as session:`; rows stay readable after the commit."""
    return sessionmaker(engine, expire_on_commit=False)
