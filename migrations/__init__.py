"""Alembic migrations: the steps that build the tables of `core.tables`. Configured here; there is no `alembic.ini`."""

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
from core.settings import Settings

HERE = Path(__file__).parent


LOCK_SECONDS, TRIES, PAUSE_SECONDS = 3, 20, 1.0
"""A migration that waits for a table has all others wait behind it, heartbeats too. Rather let it begin anew."""


def upgrade(settings: Settings, to: str = "head") -> None:
    """Bring the database to the newest schema, or up to a step: all the way or not at all. There already: nothing."""
    _walk(settings, command.upgrade, to)


def downgrade(settings: Settings) -> None:
    """Take the newest step back, for the software before it; what only that step's columns held is lost."""
    _walk(settings, command.downgrade, "-1")


def _walk(settings: Settings, direction: Callable[[Config, str], None], to: str) -> None:
    """Without the limits of `core.infra.database` on a statement's time: an index on a large table may take longer.

    A lock that is not to be had within seconds is asked for again; OperationalError where somebody holds it for good.
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
