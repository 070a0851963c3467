"""Fixtures for all tests: real servers per session, and an empty migrated database and bucket per test.

A test that uses no server fixture starts no server, and its environment is unchanged.
"""

import fcntl
import gc
import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from botocore.exceptions import ClientError
from pydantic import PostgresDsn

from core.settings import Settings
from local.folder import bypass_proxies
from local.servers import Servers, make_settings
from migrations import upgrade
from tests import databases

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NUMBERS = itertools.count()
LONGEST = {Path(__file__).with_name(name) for name in ("worker", "e2e", "faults")}
"""Folders with the longest test files. They start first, so that no process works alone at the end."""
TERMINAL = ("COLUMNS", "FORCE_COLOR", "PY_COLORS")
"""Variables that change the colours and the width of output."""


def pytest_configure() -> None:
    """Use one thread and no proxy, let Triton interpret its kernels without a card, and restore the handler of SIGINT.

    Tiny models gain nothing from more threads, and lose minutes on a busy machine. A shell makes a background command
    and its children ignore SIGINT, but some tests send it. Settings of the service and of the terminal are unset,
    because tests expect the defaults.
    """
    for name in [name for name in os.environ if name.startswith("SEFT_") or name in TERMINAL]:
        del os.environ[name]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bypass_proxies()
    if not Path("/dev/nvidiactl").exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        os.environ.setdefault("TRITON_INTERPRET", "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files so that the longest ones start first. The order of the tests in a file stays."""
    items.sort(key=lambda item: not LONGEST.intersection(item.path.parents))


def pytest_collection() -> None:
    """Collect no garbage while the test files are imported. They make millions of objects, such as all of torch."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude what the imports made from the garbage collections of the tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres, Valkey and S3, started once per session. A test may stop or kill them, but must leave them running.

    Postgres does not wait for the disk, because nothing of it is kept.
    """
    folder = tmp_path_factory.mktemp("servers")
    with Servers(folder) as running:
        with psycopg.connect(running.postgres.url("postgres"), autocommit=True) as connection:
            for setting in ("fsync", "full_page_writes"):
                connection.execute(f"ALTER SYSTEM SET {setting} = off")
            connection.execute("SELECT pg_reload_conf()")
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """Name of a migrated database that is copied for each test."""
    name = "template_migrated"
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    urls = {"SEFT_DATABASE_URL": servers.postgres.url(name), "SEFT_SERVICE_DATABASE_URL": as_service(servers, name)}
    upgrade(make_settings({**servers.environment(), **urls}))
    return name


def as_service(servers: Servers, database: str) -> str:
    """Return the URL of a database for the role that the API and the workers have in docker-compose.yml."""
    return servers.postgres.url(database).replace("//seft:", "//seft_service:")


def as_owner(servers: Servers, settings: Settings) -> Settings:
    """Return settings with which migrations can run. No other test gets the database afterwards."""
    name = str(settings.database_url).rpartition("/")[2]
    databases.changed.add(name)
    return settings.model_copy(update={"database_url": PostgresDsn(servers.postgres.url(name))})


@pytest.fixture
def settings(servers: Servers, template: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a separate database, bucket, Valkey database and scratch folder for each test."""
    with own_settings(servers, template, tmp_path) as made:
        yield made


@pytest.fixture
def new_database() -> None:
    """Give the test a new database, because it reads query plans. They depend on what deleted rows leave behind."""
    databases.spare.clear()


@cache
def storage_client(servers: Servers) -> "S3Client":
    """Return an S3 client. There is one for all tests, because it costs 10 ms of processor time."""
    return servers.storage.client()


@contextmanager
def own_settings(servers: Servers, template: str, folder: Path) -> Iterator[Settings]:
    """Make settings with a database, a bucket, a Valkey database and a scratch folder for one test.

    The user of the database has only the rights of the API and the workers.
    """
    number = next(NUMBERS)
    database, broker = databases.take(servers, template, f"test_{number}"), servers.valkey.url(number % 16)
    variables = {
        **servers.environment(),
        "SEFT_DATABASE_URL": as_service(servers, database),
        "SEFT_BROKER_URL": broker,
        "SEFT_S3_BUCKET": f"test-{number}",
        "SEFT_SCRATCH": str(folder / "scratch"),
    }
    try:
        with redis.Redis.from_url(broker) as client:
            client.flushdb()
        yield make_settings(variables)
    finally:
        databases.give_back(servers, database, f"spare_{number}")
        # SeaweedFS creates separate volumes for each bucket, and their number is limited by the disk space.
        with suppress(ClientError):
            storage_client(servers).delete_bucket(Bucket=f"test-{number}")


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """The records that the tiny Llama was trained on."""
    from tests.tiny import tiny_texts

    return tiny_texts()


@pytest.fixture(scope="session")
def quick_verification() -> Iterator[None]:
    """Verify checkpoints in the process of the tests, because a new process imports torch, which takes seconds.

    The tests of the verification itself, and those whose jobs run in a training process, use a separate process.
    """
    from seft.checkpoint import verify

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "verify_in_new_process", verify.message_of)
        yield


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not verify the written files in a process of its own, which takes longer than the run of a tiny model."""
    monkeypatch.setattr("seft.stages.verify", lambda _: None)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, quick_verification: None) -> Path:
    """A Hugging Face folder with the trained tiny Llama, alone in its parent. Read only: all processes share it."""
    from tests.tiny import train_tiny

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    models = shared / "models"
    with (shared / "models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not models.exists():
            training = tmp_path_factory.mktemp("training")
            train_tiny(training / "tiny")
            training.rename(models)
    return models / "tiny"
