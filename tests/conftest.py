"""What tests of every package share: real servers for the session, a fresh migrated database and bucket for each test.

A test that asks for no server starts none, and its environment is as it was.
"""

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import redis
from botocore.exceptions import ClientError

from core.settings import Settings
from local.servers import Servers, make_settings
from migrations import upgrade

NUMBERS = itertools.count()


def pytest_configure() -> None:
    """One thread: tiny models gain nothing by more, and lose minutes where others use the cores too.

    A shell that starts a command in the background has it ignore Ctrl-C, and all processes that it starts in turn.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres, Valkey and S3, started once; a test may stop, kill and start them, and must leave them running."""
    folder = tmp_path_factory.mktemp("servers")
    with Servers(folder) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """Name of a migrated database that tests are given copies of."""
    name = "template_migrated"
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    upgrade(make_settings({**servers.environment(), "SEFT_DATABASE_URL": servers.postgres.url(name)}))
    return name


@pytest.fixture
def settings(servers: Servers, template: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a service of the test's own: database, bucket, Valkey database, scratch folder."""
    number = next(NUMBERS)
    database, broker = f"test_{number}", servers.valkey.url(number % 16)
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database} TEMPLATE {template}")
    with redis.Redis.from_url(broker) as client:
        client.flushdb()
    yield make_settings(
        {
            **servers.environment(),
            "SEFT_DATABASE_URL": servers.postgres.url(database),
            "SEFT_BROKER_URL": broker,
            "SEFT_S3_BUCKET": f"test-{number}",
            "SEFT_SCRATCH": str(tmp_path / "scratch"),
        }
    )
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {database} WITH (FORCE)")
    # SeaweedFS gives every bucket volumes of its own, and no more of them than the disk has room for.
    with suppress(ClientError):
        servers.storage.client().delete_bucket(Bucket=f"test-{number}")


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
