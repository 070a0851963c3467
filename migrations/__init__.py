"""Alembic migrations, which create the tables of `core.tables`. Alembic is configured here, not in an `alembic.ini`."""

import time
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from psycopg.errors import LockNotAvailable
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


def downgrade(settings: DatabaseSettings) -> None:
    """Undo the newest migration, so that the previous version of the software can run.

    Data that only the columns of that migration hold is lost.
    """
    _migrate(settings, command.downgrade, "-1")


def _migrate(settings: DatabaseSettings, direction: Callable[[Config, str], None], to: str) -> None:
    """Run an Alembic command, and retry if a lock times out.

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
            if not isinstance(error.orig, LockNotAvailable) or not tries_left:
                raise
        time.sleep(PAUSE_SECONDS)
