"""The migrations build exactly the tables that the code believes in."""

from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from core.database import make_engine
from core.settings import Settings
from core.tables import Base
from migrations import upgrade


@pytest.fixture
def empty(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    yield engine
    engine.dispose()


def test_migrated_schema_equals_the_tables(settings: Settings, empty: Engine) -> None:
    upgrade(settings)
    upgrade(settings)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
