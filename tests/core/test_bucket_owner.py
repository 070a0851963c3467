"""A bucket belongs to the first service that starts with it. Another service does not start, and deletes nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import PostgresDsn
from typer.testing import CliRunner

from api.__main__ import cli
from api.app import make_app
from core import bucket_owner
from core.bucket_owner import ForeignBucketError
from core.doctor import State, run_check
from core.infra.bucket_backup import OWNER
from core.infra.database import one_session
from core.infra.storage import Storage
from core.settings import Settings
from local.folder import LOOPBACK, port_of, reserve_any
from local.servers import Servers
from tests.conftest import own_settings
from tests.core.conftest import Sessions, accepted
from tests.worker.conftest import variables


@pytest.fixture
def other(settings: Settings, servers: Servers, template: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of another service, with its own database and the same bucket."""
    with own_settings(servers, template, tmp_path / "other") as made:
        yield made.model_copy(update={"s3_bucket": settings.s3_bucket})


def start(settings: Settings) -> None:
    """Start and stop an API."""
    app = make_app(settings)
    try:
        with TestClient(app):
            pass
    finally:
        app.state.services.engine.dispose()


def run_claim(settings: Settings) -> str:
    return CliRunner().invoke(cli, ["bucket", "claim"], env=variables(settings), catch_exceptions=False).output


def test_a_service_does_not_start_with_the_bucket_of_another_service(settings: Settings, other: Settings) -> None:
    start(settings)
    with pytest.raises(ForeignBucketError, match=r"belongs to the service svc_.*SEFT_S3_BUCKET.*bucket claim"):
        start(other)
    start(settings)


def test_an_api_without_database_starts_and_does_not_own_the_bucket(settings: Settings) -> None:
    with reserve_any() as silent:
        url = PostgresDsn(f"postgresql://seft@{LOOPBACK}:{port_of(silent)}/seft")
        start(settings.model_copy(update={"database_url": url}))
    assert bucket_owner.owner(Storage(settings)) is None


def test_a_bucket_with_another_content_of_the_object_has_another_owner(settings: Settings) -> None:
    start(settings)
    Storage(settings).put(OWNER, b"\xff" * 1000)
    with pytest.raises(ForeignBucketError):
        start(settings)


def test_a_claimed_bucket_belongs_to_the_service_that_claimed_it(settings: Settings, other: Settings) -> None:
    start(settings)
    with one_session(settings) as session:
        former = bucket_owner.service_id(session)
    with one_session(other) as session:
        new = bucket_owner.service_id(session)
    told = f"{settings.s3_bucket} belongs to this service now ({new}). Its former owner: {former}.\n"
    assert run_claim(other) == told
    start(other)
    with pytest.raises(ForeignBucketError):
        start(settings)


def test_doctor_names_the_owner_of_a_foreign_bucket(settings: Settings, other: Settings) -> None:
    Storage(settings).ensure_bucket()
    assert run_check("owner", other).state is State.OK
    start(settings)
    assert run_check("owner", settings).state is State.OK
    finding = run_check("owner", other)
    assert (finding.state, finding.fix) == (State.WRONG, bucket_owner.FIX)
    with one_session(settings) as session:
        assert bucket_owner.service_id(session) in finding.found


def test_processes_of_one_service_that_start_together_have_one_id(sessions: Sessions, storage: Storage) -> None:
    found: list[str] = []
    assert accepted(sessions, lambda session, _: found.append(bucket_owner.service_id(session))) == 4
    (service,) = set(found)
    bucket_owner.require_own_bucket(storage, service)
    assert bucket_owner.owner(storage) == service
