"""Create the database engine and the session factory, take locks, and read pages of rows.

The import of this module opens no connection.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from sqlalchemy.orm import Session, class_mapper, sessionmaker

from core.settings import DatabaseSettings
from seft.storable import printable

STATEMENT_SECONDS = 30
"""Timeout of an SQL statement, in seconds. All statements of this software are fast. A slow one waits for a lock."""
KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""Connection options: a connection without an answer is closed after 20 seconds. The kernel's default is 15 minutes."""
Row = TypeVar("Row")


@unique
class Lock(IntEnum):
    """Advisory locks of the whole service. During an upgrade, processes of two versions must agree on the numbers."""

    SWEEP = 0x5EF7
    """Only one sweep at a time requeues jobs."""
    MIGRATION = 0x5EF71
    """If two processes start together, one migrates. Then the other one has nothing to migrate."""
    JOB_CLAIM = 0x5EF72
    """Claims of jobs run one after another. Each sees the jobs and turns of earlier claims."""
    IMPORT_CLAIM = 0x5EF73
    """Claims of imports run one after another. Each sees the imports and turns of earlier claims."""
    PUSH_CLAIM = 0x5EF74
    """Claims of pushes run one after another. Each sees the pushes and turns of earlier claims."""
    GRANT = 0x5EF75
    """A GRANT fails if another process grants rights on the same table at the same moment."""


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
    """Return a value as JSON that Postgres can store. A training process or a model file can supply any text."""
    text = json.dumps(value)
    # Characters that Postgres rejects have one of these escapes. Most values have none, and need one pass.
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


@contextmanager
def one_session(settings: DatabaseSettings) -> Iterator[Session]:
    """Connect to the database for one transaction. It is committed unless the `with` block raises an error."""
    engine = make_engine(settings)
    try:
        with make_sessions(engine).begin() as session:
            yield session
    finally:
        engine.dispose()


def lock(session: Session | Connection, what: Lock | str) -> None:
    """Take an advisory lock until the transaction ends. Wait while another transaction has it.

    If `what` is a text, the number of the lock is its hash.
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


def newest_first(
    session: Session, table: type[Row], *conditions: ColumnElement[bool], after: str | int | None, limit: int
) -> tuple[Sequence[Row], bool]:
    """Return up to `limit` rows of a table with ids below `after`, newest first, and whether there are older ones.

    The id is the primary key of the table, and increases with time.
    """
    (key,) = class_mapper(table).primary_key
    query = select(table).where(*conditions).order_by(key.desc())
    return page_of(session, query if after is None else query.where(key < after), limit)
