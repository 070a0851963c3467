"""A backup of a service with an unfinished job: a service restored from it finishes the job."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from pydantic import PostgresDsn

from core.infra import bucket_backup
from core.infra.storage import Storage
from core.settings import Settings
from core.states import Status
from local.servers import Servers
from tests.conftest import as_owner
from tests.waiting import wait_for
from tests.worker.conftest import Backend, Workers
from tests.worker.test_workers import STAND_IN


def test_a_restored_service_finishes_an_unfinished_job(
    backend: Backend,
    workers: Workers,
    servers: Servers,
    open_backend: Callable[[Settings], Backend],
    tmp_path: Path,
) -> None:
    job = backend.add_job(backend.add_dataset(["one " * 1024, "two"]))
    first = workers.start(backend, STAND_IN, "report_and_save")
    wait_for(lambda: backend.job(job).resume)
    assert bucket_backup.save(backend.storage, tmp_path / "bucket") == 3, "the dataset and the two files of a state"
    dump(servers, as_owner(servers, backend.settings), tmp_path / "database")
    assert bucket_backup.save(backend.storage, tmp_path / "bucket") == 0, "everything is in the backup already"
    first.send_signal(signal.SIGKILL)

    url = servers.postgres.url("restored")
    restored = backend.settings.model_copy(update={"database_url": PostgresDsn(url), "s3_bucket": "restored"})
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    restore(servers, restored, tmp_path / "database")
    with pytest.raises(subprocess.CalledProcessError):
        restore(servers, restored, tmp_path / "database")
    assert bucket_backup.load(Storage(restored), tmp_path / "bucket") == 3
    second = open_backend(restored)
    workers.start(second, STAND_IN, "succeed_when_resumed")
    wait_for(lambda: Status(second.job(job).status).final)
    assert (second.job(job).status, second.job(job).attempt) == (Status.SUCCEEDED, 2)
    assert {"job.lost", "attempt.resumed"} <= set(second.events(job))
    second.storage.delete(second.storage.keys(""))


def dump(servers: Servers, settings: Settings, file: Path) -> None:
    """Dump the database as deploy/backup.sh does."""
    pg_dump = str(servers.postgres.binaries / "pg_dump")
    with file.open("wb") as output:
        subprocess.run([pg_dump, "--format=custom", str(settings.database_url)], stdout=output, check=True)


def restore(servers: Servers, settings: Settings, file: Path) -> None:
    pg_restore = str(servers.postgres.binaries / "pg_restore")
    options = [
        "--single-transaction",
        "--exit-on-error",
        "--no-privileges",
        f"--dbname={settings.database_url}",
        str(file),
    ]
    subprocess.run([pg_restore, *options], check=True)
