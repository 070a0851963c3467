"""What tests of every package share: real servers for the session, a fresh migrated database and bucket for each test.

Nothing here touches the process's environment, and a test that asks for no server starts none.
"""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import create_engine

from core.settings import Settings
from core.tables import Base
from local.servers import Servers

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres, Valkey and S3, started once; a test may stop, kill and start them, and must leave them running."""
    folder = tmp_path_factory.mktemp("servers")
    with Servers(folder) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _template(servers: Servers) -> str:
    """Name of a migrated database that tests are given copies of."""
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_migrated")
    engine = create_engine(servers.postgres.url("template_migrated").replace("postgresql:", "postgresql+psycopg:"))
    Base.metadata.create_all(engine)
    engine.dispose()
    return "template_migrated"


@pytest.fixture
def settings(servers: Servers, _template: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a service of the test's own: database, bucket, Valkey database, scratch folder."""
    number = next(NUMBERS)
    database = f"test_{number}"
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database} TEMPLATE {_template}")
    broker = servers.valkey.url(number % 16)
    with redis.Redis.from_url(broker) as client:
        client.flushdb()
    environment = {
        **servers.environment,
        "SEFT_DATABASE_URL": servers.postgres.url(database),
        "SEFT_BROKER_URL": broker,
    }
    fields = {name.removeprefix("SEFT_").lower(): value for name, value in environment.items()}
    yield Settings.model_validate({**fields, "s3_bucket": f"test-{number}", "scratch": tmp_path / "scratch"})
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """The records that the tiny Llama has learnt."""
    from tests.tiny import tiny_texts

    return tiny_texts()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a tiny trained Llama. Read it, never write into it."""
    from tests.tiny import train_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    train_tiny(folder)
    return folder
