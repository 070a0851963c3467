"""Files of formats go from the training process straight to object storage, and are verified there."""

import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from core.infra.storage import PART_BYTES, Part, Storage
from core.jobs import actions
from core.states import Status
from seft.checkpoint.formats import write_format
from seft.config import OutputFormat
from tests.waiting import wait_for
from tests.worker.conftest import Backend, Running, Workers, supervisor
from tests.worker.stand_in import FORMAT, LARGE, SMALL
from worker.attempt import Supervisor
from worker.format_service import FormatService
from worker.format_store import FormatStore
from worker.protocol import RESULT
from worker.transfers import Transfers

STAND_IN = "tests.worker.stand_in_worker"
FORMATS = [OutputFormat.COMPACT, OutputFormat.COMPACT_INT8, OutputFormat.GGUF_Q8_0]
SPEC: dict[str, Any] = {
    "prune": {"method": "magnitude"},
    "repair": {"method": "none"},
    "evaluate": {"windows": 1, "tokens": 96},
}


def uploads(backend: Backend) -> list[str]:
    """Return the keys of the multipart uploads that are neither finished nor aborted."""
    listed = backend.storage._s3.list_multipart_uploads(Bucket=backend.settings.s3_bucket)
    return [each["Key"] for each in listed.get("Uploads", ())]


def with_storage(backend: Backend, kind: type[Storage]) -> Backend:
    return Backend(backend.settings, backend.sessions, kind(backend.settings))


@pytest.fixture
def real(backend: Backend, tiny_folder: Path) -> Backend:
    """A backend whose jobs train the tiny model in the real training process."""
    return Backend(
        backend.settings.model_copy(update={"model_roots": [tiny_folder.parent], "lease_seconds": 60}),
        backend.sessions,
        backend.storage,
    )


def run(backend: Backend) -> None:
    """Run the next job with the real training process."""
    Supervisor(backend.claim(), backend.sessions, backend.storage, backend.settings, draining=threading.Event()).run()


class Watch(threading.Thread):
    """Records the largest space on the disk of every file below a folder that has the name of a format."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.over, self.space = folder, threading.Event(), dict[str, int]()

    def run(self) -> None:
        names = {each.file for each in OutputFormat}
        while not self.over.wait(0.002):
            with suppress(FileNotFoundError):  # it was just deleted
                for path in self.folder.rglob("*"):
                    if path.name in names:
                        space = path.lstat().st_blocks * 512
                        self.space[path.name] = max(self.space.get(path.name, 0), space)

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def test_a_stored_file_has_the_bytes_of_a_file_on_disk_and_was_never_on_the_workers_disk(
    real: Backend, tmp_path: Path, tiny_texts: list[str]
) -> None:
    dataset, published = real.add_dataset(tiny_texts[:20]), list[dict[str, str]]()
    for formats in ([OutputFormat.DENSE, *FORMATS], FORMATS):
        job_id = real.add_job(dataset, **SPEC, output={"formats": formats})
        with Watch(real.settings.scratch) as watch:
            run(real)
        assert real.job(job_id).status == Status.SUCCEEDED, real.event_rows(job_id)[-1].data
        checkpoint = real.checkpoint(job_id)
        published.append({file["name"]: file["sha256"] for file in checkpoint.files})
        assert watch.space.keys() == {"model-Q8_0.gguf"}, "of a GGUF file, the header is on disk while it is verified"
        assert watch.space["model-Q8_0.gguf"] < 1 << 14
        if OutputFormat.DENSE in formats:
            (folder := tmp_path / "dense").mkdir()
            for file in checkpoint.files:
                real.storage.download(checkpoint.prefix + file["name"], folder / file["name"])
    for format_ in FORMATS:
        stored = (folder / str(format_.file)).read_bytes()
        write_format(folder, format_, again := tmp_path / format_)
        assert again.read_bytes() == stored
    every, files_only = published
    assert {name: every[name] for name in files_only if name.startswith("model")} == {
        name: digest for name, digest in files_only.items() if name.startswith("model")
    }
    assert {each.file for each in FORMATS} == {name for name in files_only if name.startswith("model")}
    assert uploads(real) == []


def test_a_byte_that_changes_in_storage_is_found_and_the_checkpoint_is_never_visible(
    real: Backend, tiny_texts: list[str]
) -> None:
    class Damaging(Storage):
        """Changes a byte of each part."""

        def upload_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
            changed = bytearray(content)
            changed[len(content) // 2] ^= 1
            return super().upload_part(key, upload, number, bytes(changed))

    job_id = real.add_job(real.add_dataset(tiny_texts[:20]), **SPEC, output={"formats": [OutputFormat.GGUF_Q8_0]})
    run(with_storage(real, Damaging))
    assert real.job(job_id).status == Status.QUEUED
    error = real.event_rows(job_id)[-1].data["error"]
    assert "model-Q8_0.gguf must have the (size, sha256) of manifest.json" in error["message"]
    assert [key for key in real.storage.keys(f"jobs/{job_id}/") if "/result/" in key] == []


def test_a_stored_file_is_read_back_in_ranges(backend: Backend, job_id: str) -> None:
    supervisor(backend, "store_and_read").run()
    assert backend.event_rows(job_id)[-1].data["error"]["code"] == "protocol_broken"
    assert "must name the stored file model-BF16.gguf" in backend.event_rows(job_id)[-1].data["error"]["message"]


def stored(backend: Backend, job_id: str) -> dict[str, bytes]:
    assert backend.job(job_id).status == Status.SUCCEEDED, backend.event_rows(job_id)[-1].data
    prefix = backend.checkpoint(job_id).prefix
    names = [file["name"] for file in backend.checkpoint(job_id).files]
    assert sorted(prefix + name for name in names) == backend.storage.keys(f"jobs/{job_id}/")
    return {name: backend.storage.read(prefix + name) for name in names if name != "manifest.json"}


def test_a_worker_that_is_killed_in_the_middle_of_a_file_leaves_nothing_and_the_next_attempt_stores_it(
    backend: Backend, workers: Workers, job_id: str
) -> None:
    assert len(FORMAT) > PART_BYTES
    first = workers.start(backend, STAND_IN, "store_until_killed")
    wait_for(lambda: uploads(backend))
    first.kill()
    first.wait()
    workers.start(backend, STAND_IN, "store_until_killed")
    wait_for(lambda: Status(backend.job(job_id).status).final)
    assert backend.job(job_id).attempt == 2
    assert stored(backend, job_id) == {SMALL: FORMAT[:1000], LARGE: FORMAT}
    wait_for(lambda: not uploads(backend))


@pytest.mark.parametrize(
    ("ended", "code"),
    [("cancelled", None), ("drained", None), ("silent", "training_process_hung"), ("too much", "protocol_broken")],
)
def test_a_file_that_is_not_completed_leaves_no_object_and_no_parts(
    backend: Backend, job_id: str, ended: str, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.format_service.SPARE_BYTES", 1 << 20 if ended == "too much" else 64 << 20)
    monkeypatch.setattr("worker.lifecycle.DRAIN_SECONDS", 0.5)
    attempt = supervisor(backend, "write_without_end" if ended == "too much" else "write_a_part_and_hang")
    running = Running(attempt)
    with running:
        if ended != "too much":
            wait_for(lambda: uploads(backend))
        if ended == "cancelled":
            backend.request(actions.cancel, job_id)
        elif ended == "drained":
            attempt.draining.set()
        elif ended == "silent":
            monkeypatch.setattr("worker.watchdog.SILENT_SECONDS", 0.5)
        running.thread.join()
    job, status = backend.job(job_id), Status.CANCELLED if ended == "cancelled" else Status.QUEUED
    assert (job.status, job.failures) == (status, 1 if code else 0)
    assert backend.event_rows(job_id)[-1].data.get("error", {}).get("code") == code
    assert backend.storage.keys(f"jobs/{job_id}/") == uploads(backend) == []


def test_the_lease_is_renewed_while_a_part_is_uploaded(backend: Backend, job_id: str) -> None:
    class Slow(Storage):
        """Needs longer for a part than the time between two heartbeats."""

        def upload_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
            backend.wait_for_renewals(job_id)
            parts.append(number)
            return super().upload_part(key, upload, number, content)

    parts = list[int]()
    supervisor(with_storage(backend, Slow), "store").run()
    assert len(parts) > 1
    assert stored(backend, job_id) == {SMALL: FORMAT[:1000], LARGE: FORMAT}


@pytest.mark.parametrize(
    ("scenario", "rule"),
    [
        ("store_under_another_name", "'manifest.json' must be the file of a format"),
        ("store_outside_of_the_prefix", "must be the file of a format"),
        ("store_a_file_twice", "'model.seft' must be the file of a format, and must not be stored yet"),
        ("read_what_is_not_stored", "must be stored before it is read"),
        ("send_a_long_request", "may have at most 65536 bytes"),
        ("send_no_request", "a request of the process is not valid"),
        ("lie_about_a_stored_file", "model.seft must have the size and SHA-256"),
        ("hide_a_stored_file", "must name the stored file model.seft"),
    ],
)
def test_the_worker_does_not_trust_the_requests(backend: Backend, job_id: str, scenario: str, rule: str) -> None:
    supervisor(backend, scenario).run()
    assert backend.job(job_id).status == Status.QUEUED
    error = backend.event_rows(job_id)[-1].data["error"]
    assert error["code"] == "protocol_broken"
    assert rule in error["message"]
    assert backend.storage.keys(f"jobs/{job_id}/") == []


def test_a_part_is_sent_again_while_the_storage_is_unreachable(backend: Backend, job_id: str) -> None:
    failures = {"upload_part": 2, "finish_upload": 1}

    def fail(name: str) -> None:
        if failures[name]:
            failures[name] -= 1
            raise EndpointConnectionError(endpoint_url="http://storage")

    class Away(Storage):
        """Cannot be reached for two parts. Later the reply to the end of an upload is lost."""

        def upload_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
            fail("upload_part")
            return super().upload_part(key, upload, number, content)

        def finish_upload(self, key: str, upload: str, parts: Any) -> None:
            super().finish_upload(key, upload, parts)
            fail("finish_upload")

    supervisor(with_storage(backend, Away), "store").run()
    assert failures == {"upload_part": 0, "finish_upload": 0}
    assert stored(backend, job_id) == {SMALL: FORMAT[:1000], LARGE: FORMAT}


def test_a_job_whose_file_finds_the_storage_full_is_paused_and_stores_it_later(backend: Backend, job_id: str) -> None:
    class Full(Storage):
        """Has no space."""

        def upload_part(self, key: str, upload: str, number: int, content: bytes) -> Part:
            raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 507}}, "UploadPart")  # type: ignore[typeddict-item]

    supervisor(with_storage(backend, Full), "store").run()
    job = backend.job(job_id)
    assert job.status == Status.PAUSED
    assert job.reason is not None
    assert job.reason["code"] == "storage_full"
    assert uploads(backend) == []
    backend.request(actions.resume, job_id)
    supervisor(backend, "store").run()
    assert stored(backend, job_id) == {SMALL: FORMAT[:1000], LARGE: FORMAT}


@pytest.fixture
def pair() -> Iterator[tuple[Connection, FormatStore]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    with Connection(ours.detach()) as connection:
        yield connection, FormatStore(theirs.detach())


def test_memory_does_not_depend_on_the_size_of_a_file(
    backend: Backend, tmp_path: Path, pair: tuple[Connection, FormatStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.infra.storage.PART_BYTES", 5 << 20)
    monkeypatch.setattr("worker.format_service.SPARE_BYTES", 1 << 30)
    (tmp_path / RESULT).mkdir()
    transfers, (connection, store) = Transfers(backend.storage, lambda _: None), pair
    service = FormatService(tmp_path, "jobs/x/1/result/", transfers)
    thread = threading.Thread(target=service.serve, args=(connection, lambda: None), daemon=True)
    thread.start()
    block = bytes(1 << 20)
    tracemalloc.start()
    try:
        entry = store.write(LARGE, lambda sink: sink.writelines(block for _ in range(100)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert entry == service.stored[LARGE]
    assert store.open(LARGE).size == entry.size == 100 << 20
    assert peak < 60 << 20
    store._connection.close()
    thread.join()
    transfers.close(lambda: None, 10)
