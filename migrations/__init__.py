"""Alembic migrations: the steps that build the tables of `core.tables`. Configured here; there is no `alembic.ini`."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from core.database import url
from core.settings import Settings

HERE = Path(__file__).parent


def upgrade(settings: Settings, to: str = "head") -> None:
    """Bring the database to the newest schema, or up to a step; where it is there already, do nothing.

    Without the limits of `core.database` on a statement's time: an index on a large table may take longer.
    """
    engine = create_engine(url(settings), poolclass=NullPool)
    config = Config()
    config.set_main_option("script_location", str(HERE))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, to)
