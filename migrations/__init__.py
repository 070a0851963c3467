"""Alembic migrations, which create the tables of `core.tables`. Alembic is configured here, not in an `alembic.ini`."""

import time
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from core.infra.database import url
from core.settings import DatabaseSettings
from migrations import service_role

HERE = Path(__file__).parent


LOCK_SECONDS, TRIES, PAUSE_SECONDS = 3, 20, 1.0
"""Timeout of a table lock, number of tries, and pause between tries. While a migration waits for a lock on a table, all
other statements on that table wait behind it, including heartbeats. So it gives up soon and retries."""


def upgrade(settings: DatabaseSettings, to: str = "head") -> None:
    """Upgrade the database to the newest schema, or to a given revision, in one transaction. Idempotent.

    Afterwards the role of the API and the workers gets its rights.
    """
    _migrate(settings, command.upgrade, to)
    service_role.grant(settings)


def downgrade(settings: DatabaseSettings, to: str) -> None:
    """Undo all migrations after a revision, so that the software whose newest revision it is can run.

    Data that only the columns of these migrations hold is lost. Raises ValueError if there is no such revision, or if
    a later one cannot be undone, or not yet.
    """
    later = []
    for script in ScriptDirectory(str(HERE)).walk_revisions():
        if script.revision == to:
            break
        later.append(script)
    else:
        raise ValueError(
            f"the revision must be the number of a file in {HERE / 'versions'}, such as 0271; it is {to!r}"
        )
    if final := [script.revision for script in later if not hasattr(script.module, "downgrade")]:
        raise ValueError(f"the migrations {', '.join(final)} cannot be undone. Restore a backup of the older version")
    _migrate(settings, command.downgrade, to)


def _migrate(settings: DatabaseSettings, direction: Callable[[Config, str], None], to: str) -> None:
    """Run an Alembic command, and retry if a lock times out or a deadlock ends it.

    Does not use the statement timeout of `core.infra.database`, because an index on a large table may take longer.
    Raises OperationalError if the lock is still not available after `TRIES` tries.
    """
    engine = create_engine(url(settings), poolclass=NullPool)
    for tries_left in reversed(range(TRIES)):
        try:
            with engine.begin() as connection:
                config = Config()
                config.set_main_option("script_location", str(HERE))
                config.attributes["connection"] = connection
                direction(config, to)
            break
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable | DeadlockDetected) or not tries_left:
                raise
        time.sleep(PAUSE_SECONDS)
