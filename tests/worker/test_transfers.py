"""Which answers of the object storage end an attempt, and which are waited for."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError

from core.infra.storage import Storage
from core.states import Status
from tests.core.infra.test_storage import before_sending
from tests.waiting import wait_for
from tests.worker.conftest import Backend, Running, supervisor
from worker.lifecycle import State
from worker.transfers import GoneError, Transfers

LARGE = bytes(range(256)) * 40_000
"""Content of an object that is sent in parts."""


def answer(status: int, code: str = "") -> ClientError:
    error = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}
    return ClientError(error, "Upload")  # type: ignore[arg-type]


@pytest.fixture
def transfers(backend: Backend) -> Iterator[Transfers]:
    transfers = Transfers(backend.storage, lambda handle: handle())
    yield transfers
    transfers.close(lambda: None, 10.0)


def test_a_storage_that_rejects_writes_fails_the_attempt_at_its_first_state(backend: Backend, job_id: str) -> None:
    class ReadOnly(Storage):
        def upload(self, source: object, key: str, sent: object = None) -> None:
            raise answer(413)

    supervisor(replace(backend, storage=ReadOnly(backend.settings)), "save_and_wait").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.QUEUED, 1)


def test_a_tenant_reads_no_internal_address_and_what_to_do(backend: Backend, job_id: str) -> None:
    class Rejecting(Storage):
        def upload(self, source: object, key: str, sent: object = None) -> None:
            try:
                raise answer(400)
            except ClientError as error:
                raise S3UploadFailedError("Failed to upload /scratch/run to http://storage.internal") from error

    settings = backend.settings.model_copy(update={"max_failures": 1})
    supervisor(replace(backend, storage=Rejecting(settings), settings=settings), "save_and_wait").run()
    error = backend.job(job_id).error
    assert error is not None
    assert (error["fault"], error["code"]) == ("system_error", "storage_failed")
    assert error["message"] == (
        "The object storage rejected a request of the worker."
        f" Create the job again with POST /jobs/{job_id}/clone, or ask the operator."
    )


def test_credentials_that_the_storage_rejects_for_some_seconds_fail_no_attempt(backend: Backend, job_id: str) -> None:
    downloads, uploads = [401, 403], [401, 403]

    class OtherPassword(Storage):
        """Answers as while the operator changes the password of the storage."""

        def download(self, key: str, path: Path) -> None:
            if downloads:
                raise answer(downloads.pop())
            super().download(key, path)

        def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
            if uploads:
                raise answer(uploads.pop())
            super().upload(source, key, sent)

    supervisor(replace(backend, storage=OtherPassword(backend.settings)), "succeed").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures) == (Status.SUCCEEDED, 0)
    assert (downloads, uploads) == ([], [])


def test_a_job_is_released_after_its_last_state_is_stored(backend: Backend, job_id: str) -> None:
    class Slow(Storage):
        """Stores a file long after the training process has ended."""

        def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
            wait_for(lambda: running.lifecycle.state is not State.TRAINING)
            backend.wait_for_renewals(job_id)
            super().upload(source, key, sent)

    running = supervisor(replace(backend, storage=Slow(backend.settings)), "save_when_asked")
    with Running(running):
        wait_for(lambda: backend.job(job_id).step == 4)
        running.draining.set()
    job = backend.job(job_id)
    assert job.resume is not None
    assert (job.status, job.resume["step"]) == (Status.QUEUED, 5)


def test_an_upload_that_has_vanished_begins_again(backend: Backend, transfers: Transfers) -> None:
    storage, key = backend.storage, "jobs/1/1/resume/0/run"
    aborted = list[str]()

    def abort(request: Any) -> None:
        if not aborted:
            aborted.append(request.url)
            storage.abort_uploads("jobs/1/")

    before_sending(storage, "CompleteMultipartUpload", abort)
    storage.put(key, b"something else")
    transfers.upload(lambda: BytesIO(LARGE), key)
    assert aborted
    assert storage.read(key) == LARGE


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_a_request_of_a_vanished_upload_is_not_repeated(backend: Backend, transfers: Transfers, operation: str) -> None:
    storage, key, sent = backend.storage, "jobs/1/1/result/model.seft", list[str]()

    def abort(request: Any) -> None:
        sent.append(request.url)
        storage.abort_uploads("jobs/1/")

    before_sending(storage, operation, abort)
    transfers.pause = pytest.fail  # type: ignore[assignment]
    with pytest.raises(GoneError):
        transfers.upload_parts([b"the only part"], key)
    assert len(sent) == 1
    assert storage.keys("") == []


@pytest.mark.parametrize("code", ["RequestTimeout", "IncompleteBody"])
def test_a_body_that_arrives_too_slowly_or_incompletely_is_sent_again(backend: Backend, job_id: str, code: str) -> None:
    failures = [answer(400, code)]

    class Slow(Storage):
        def upload(self, source: Path | BinaryIO, key: str, sent: Callable[[int], None] | None = None) -> None:
            if failures:
                raise failures.pop()
            super().upload(source, key, sent)

    supervisor(replace(backend, storage=Slow(backend.settings)), "succeed").run()
    assert (backend.job(job_id).status, backend.job(job_id).failures, failures) == (Status.SUCCEEDED, 0, [])


def test_a_missing_object_is_not_waited_for(transfers: Transfers) -> None:
    with pytest.raises(GoneError, match="missing"):
        transfers.size("jobs/1/1/resume/0/run")
