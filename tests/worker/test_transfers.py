"""Which answers of the object storage end an attempt, and which are waited for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError

from core.infra.storage import Storage
from core.states import Status
from tests.worker.conftest import Backend, supervisor


def answer(status: int) -> ClientError:
    return ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "Upload")  # type: ignore[typeddict-item]


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
