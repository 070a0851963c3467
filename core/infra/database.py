"""Create the database engine and the session factory, take locks, and read pages of rows.

The import of this module opens no connection.
"""

import json
from collections.abc import Sequence
from enum import IntEnum, unique
from typing import Any, TypeVar

from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    ExceptionContext,
    Select,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from core.settings import DatabaseSettings
from seft.storable import printable

STATEMENT_SECONDS = 30
"""Timeout of an SQL statement, in seconds. All statements of this software are fast. A slow one waits for a lock."""
KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""Connection options: a server that does not answer is dropped after 20 seconds. The kernel's default is 15 minutes."""
Row = TypeVar("Row")


@unique
class Lock(IntEnum):
    """Advisory locks of the whole service. During an upgrade, processes of two versions must agree on the numbers."""

    SWEEP = 0x5EF7
    """It makes one sweep at a time requeue jobs."""
    MIGRATION = 0x5EF71
    """Of two processes that start together, one migrates, and the other has nothing to do."""
    JOB_CLAIM = 0x5EF72
    """It makes one claim see the jobs and the turns of the claims before it."""
    IMPORT_CLAIM = 0x5EF73
    """It makes one claim see the turns and the imports in work of the claims before it, in other processes too."""
    PUSH_CLAIM = 0x5EF74
    """It makes one claim see the turns and the running pushes of the claims before it."""
    GRANT = 0x5EF75
    """Postgres fails if two processes grant rights on a table at the same moment."""


def url(settings: DatabaseSettings) -> URL:
    """Return the URL of the database, with the driver psycopg."""
    return make_url(str(settings.database_url)).set(drivername="postgresql+psycopg")


def make_engine(settings: DatabaseSettings) -> Engine:
    """Create the database engine. Its connection pool detects that the server was restarted."""
    limit = f"{STATEMENT_SECONDS}s"
    engine = create_engine(
        url(settings),
        pool_size=10,
        max_overflow=10,
        pool_timeout=10,
        pool_pre_ping=True,
        json_serializer=to_json,
        hide_parameters=True,  # errors are logged, and parameters hold tenants' data
        connect_args={
            "connect_timeout": 5,
            **KEEPALIVE,
            "options": f"-c timezone=UTC -c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit}",
        },
    )
    event.listen(engine, "handle_error", _disconnect_if_read_only)
    return engine


def to_json(value: Any) -> str:
    """Return a value as JSON that Postgres can store. Texts of a training process or a model file can be anything."""
    text = json.dumps(value)
    # Only these escapes can be of characters that Postgres rejects. Most values have none, and need one pass.
    return json.dumps(_printable(value)) if "\\u0000" in text or "\\ud" in text else text


def _printable(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case dict():
            return {_printable(key): _printable(each) for key, each in value.items()}
        case list() | tuple():
            return [_printable(each) for each in value]
        case _:
            return value


def _disconnect_if_read_only(context: ExceptionContext) -> None:
    """Treat a read-only server as disconnected. After a failover, the former primary server rejects writes."""
    if isinstance(context.original_exception, ReadOnlySqlTransaction):
        context.is_disconnect = True
        raise OperationalError(context.statement, None, context.original_exception, hide_parameters=True)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Create the session factory. Use it as `with sessions.begin() as session:`.

    Objects that were read in a session can still be used after its commit.
    """
    return sessionmaker(engine, expire_on_commit=False)


def lock(session: Session | Connection, what: Lock | str) -> None:
    """Take an advisory lock until the transaction ends. Wait while another transaction has it.

    A text stands for a lock of its own. Its hash is the number of the lock.
    """
    session.execute(select(func.pg_advisory_xact_lock(_number(what))))


def try_lock(session: Session, what: Lock | str) -> bool:
    """Take an advisory lock as `lock` does, and return True. Return False at once if another transaction has it."""
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(_number(what)))))


def _number(what: Lock | str) -> int | ColumnElement[int]:
    return int(what) if isinstance(what, Lock) else func.hashtextextended(what, 0)


def page_of(session: Session, query: Select[Row], limit: int) -> tuple[Sequence[Row], bool]:
    """Return the first `limit` rows of a query, and whether more rows follow."""
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
