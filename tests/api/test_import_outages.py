"""Imports while the object storage or the source is not available, or keeps only a part of what it received."""

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import BinaryIO

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from fastapi import FastAPI
from sqlalchemy import extract, func, select
from starlette.testclient import TestClient

from api.importer import Importer
from core.datasets import imports
from core.errors import Code, ProblemError
from core.infra.storage import Storage
from core.tables import Import
from tests.api.conftest import let_leases_end, problem
from tests.api.test_imports import RIGHT, Sessions, begin, parts, ready, settled
from tests.core.infra.test_storage import before_sending
from tests.waiting import wait_for

LARGE = b"".join(b'{"text": "%d%s"}\n' % (number, b"x" * 990_000) for number in range(9))
"""A dataset that is sent in parts."""


def test_an_import_survives_a_storage_that_is_away(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    upload = ready(client, RIGHT)
    services = app.state.services
    away = replace(
        services, storage=Storage(services.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    )
    pauses = []
    for _ in range(imports.TRIES + 3):
        assert Importer(away).poll()
        with sessions.begin() as session:
            pauses.append(session.scalar(select(extract("epoch", Import.due_at - func.now()))))
        let_leases_end(sessions)
    assert pauses == pytest.approx([60, 120, 240, 480, 960, 1920, 3600, 3600], abs=5)
    assert settled(app, client, upload)["status"] == "done"


@pytest.mark.parametrize("error", [ReadTimeoutError, ConnectTimeoutError, SSLError, ProxyConnectionError])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_import_survives_a_storage_that_hangs_while_the_file_is_read(
    app: FastAPI,
    client: TestClient,
    sessions: Sessions,
    compress: Callable[[bytes], bytes],
    error: type[BotoCoreError],
) -> None:
    """These errors of the storage are OSErrors, as are those of a damaged file."""
    content = b"".join(b'{"text": "%s"}\n' % os.urandom(900_000).hex().encode() for _ in range(6))
    upload, reads = ready(client, compress(content)), list[int]()
    storage = Storage(app.state.services.settings)

    def hang(_: object) -> None:
        reads.append(len(reads))
        if len(reads) > 1:
            raise error(endpoint_url="http://storage", proxy_url="http://proxy", error="timed out")

    before_sending(storage, "GetObject", hang)
    assert Importer(replace(app.state.services, storage=storage)).poll()
    assert len(reads) > 1
    let_leases_end(sessions)
    assert settled(app, client, upload)["status"] == "done"


@pytest.mark.parametrize("status", [401, 403])
def test_an_import_survives_a_storage_that_rejects_the_credentials(
    app: FastAPI, client: TestClient, sessions: Sessions, status: int
) -> None:
    class OtherPassword(Storage):
        """Answers as while the operator changes the password of the storage."""

        def open(self, key: str, bucket: str | None = None) -> BinaryIO:
            metadata = {"HTTPStatusCode": status}
            raise ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": metadata}, "HeadObject")  # type: ignore[typeddict-item]

    upload = ready(client, RIGHT)
    away = replace(app.state.services, storage=OtherPassword(app.state.services.settings))
    for _ in range(imports.TRIES + 1):
        assert Importer(away).poll()
        let_leases_end(sessions)
    assert settled(app, client, upload)["status"] == "done"


def test_the_lease_is_renewed_while_the_storage_is_slow(
    app: FastAPI, client: TestClient, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Storage):
        """Opens no object before the lease of the import has been renewed."""

        def open(self, key: str, bucket: str | None = None) -> BinaryIO:
            first = due_at()
            wait_for(lambda: due_at() != first)
            return super().open(key, bucket)

    def due_at() -> datetime | None:
        with sessions.begin() as session:
            return session.scalars(select(Import.due_at)).one()

    monkeypatch.setattr(imports, "LEASE", timedelta(seconds=0.04))
    upload = ready(client, RIGHT)
    assert Importer(replace(app.state.services, storage=Slow(app.state.services.settings))).poll()
    assert client.get(f"/imports/{upload['id']}").json()["status"] == "done"


def test_an_unreachable_source_is_named_after_the_last_try(
    app: FastAPI, client: TestClient, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ProblemError(Code.HUB_UNREACHABLE, "The hub does not answer.")

    monkeypatch.setattr(Importer, "_file", fail)
    upload = ready(client, RIGHT)
    for _ in range(imports.TRIES):
        result = settled(app, client, upload)
        let_leases_end(sessions)
    assert (result["status"], result["error"]["code"]) == ("failed", "hub_unreachable")


def test_an_import_whose_parts_always_vanish_is_given_up(app: FastAPI, client: TestClient, sessions: Sessions) -> None:
    upload, storage = ready(client, LARGE), app.state.services.storage
    before_sending(storage, "CompleteMultipartUpload", lambda _: storage.abort_uploads("datasets/"))
    for _ in range(imports.TRIES):
        with pytest.raises(ClientError, match="NoSuchUpload"):
            Importer(app.state.services).poll()
        let_leases_end(sessions)
    assert settled(app, client, upload)["status"] == "failed"


def test_a_part_whose_end_the_storage_does_not_have_counts_as_missing(
    app: FastAPI, client: TestClient, sessions: Sessions
) -> None:
    upload = begin(client, len(RIGHT))
    with sessions.begin() as session:
        row = session.get_one(Import, upload["id"])
    app.state.services.storage.upload_part(imports.key(row.id), row.upload, 1, RIGHT[:-1])
    assert [part["received"] for part in parts(client, upload)] == [False]
    report = problem(client.post(f"/imports/{row.id}/complete"), 409, "conflict")
    assert report["errors"][0]["value"] == "incomplete or missing for the numbers 1"
