"""What a backup keeps of a service whose job is half done, and that an empty service made of it ends the job."""

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
from tests.worker.conftest import House, Workers, wait_for
from tests.worker.test_workers import STAND_IN


def test_an_empty_service_made_of_a_backup_ends_the_job_that_was_half_done(
    house: House,
    workers: Workers,
    servers: Servers,
    open_house: Callable[[Settings], House],
    tmp_path: Path,
) -> None:
    job = house.add_job(house.add_dataset(["one", "two"]))
    first = workers.start(house, STAND_IN, "report_and_save")
    wait_for(lambda: house.job(job).resume)
    assert bucket_backup.save(house.storage, tmp_path / "bucket") == 3, "the dataset and the two files of a state"
    dump(servers, house.settings, tmp_path / "database")
    assert bucket_backup.save(house.storage, tmp_path / "bucket") == 0, "it was all there"
    first.send_signal(signal.SIGKILL)

    url = servers.postgres.url("restored")
    restored = house.settings.model_copy(update={"database_url": PostgresDsn(url), "s3_bucket": "restored"})
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    restore(servers, restored, tmp_path / "database")
    with pytest.raises(subprocess.CalledProcessError):
        restore(servers, restored, tmp_path / "database")
    assert bucket_backup.load(Storage(restored), tmp_path / "bucket") == 3
    second = open_house(restored)
    workers.start(second, STAND_IN, "succeed_when_resumed")
    wait_for(lambda: Status(second.job(job).status).final)
    assert (second.job(job).status, second.job(job).attempt) == (Status.SUCCEEDED, 2)
    assert {"job.lost", "attempt.resumed"} <= set(second.events(job))
    second.storage.delete(second.storage.keys(""))


def dump(servers: Servers, settings: Settings, file: Path) -> None:
    """As deploy/backup.sh does it."""
    pg_dump = str(servers.postgres.binaries / "pg_dump")
    with file.open("wb") as output:
        subprocess.run([pg_dump, "--format=custom", str(settings.database_url)], stdout=output, check=True)


def restore(servers: Servers, settings: Settings, file: Path) -> None:
    pg_restore = str(servers.postgres.binaries / "pg_restore")
    words = ["--single-transaction", "--exit-on-error", f"--dbname={settings.database_url}", str(file)]
    subprocess.run([pg_restore, *words], check=True)
