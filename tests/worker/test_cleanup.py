"""Objects without a row are deleted; objects with a row, new ones and those of other services stay."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import httpx2
import pytest
from botocore.exceptions import ClientError
from sqlalchemy import text

from core import bucket_owner, ids
from core.access import keys
from core.access.keys import Scope
from core.datasets import datasets, imports
from core.errors import ProblemError
from core.infra.bucket_backup import OWNER
from core.infra.storage import Storage, StoredObject
from core.jobs import actions, attempts, retention
from core.states import ImportState
from core.tables import Import
from seft.data.records import Format
from tests import claims
from tests.waiting import wait_for
from tests.worker.conftest import TENANT, Backend, Running, supervisor
from worker import cleanup


class Aged(Storage):
    """Reports all objects as older than they are, by `age`."""

    age = timedelta(days=2)

    def pages(self, prefix: str) -> Iterator[list[StoredObject]]:
        for page in super().pages(prefix):
            yield [replace(item, modified=item.modified - self.age) for item in page]

    def modified(self, key: str) -> datetime | None:
        modified = super().modified(key)
        return modified and modified - self.age


@pytest.fixture
def aged(backend: Backend) -> Aged:
    """A storage whose objects are older than a day and newer than the database."""
    with backend.sessions.begin() as session:
        keys.issue(session, TENANT, "first", Scope.ADMIN)
        session.execute(text("UPDATE api_keys SET created_at = now() - interval '3 days'"))
    return Aged(backend.settings)


def test_objects_of_jobs_stay_only_if_running_saved_or_published(backend: Backend, job_id: str) -> None:
    released = backend.claim()
    saved = {"step": 4, "files": [{"name": "run", "key": f"jobs/{job_id}/1/resume/4/run", "size": 1}]}
    with backend.sessions.begin() as session:
        attempts.save_resume(session, released, saved)
        attempts.release(session, released)
    running = backend.claim()
    other = backend.add_job(backend.add_dataset(["three " * 1024, "four"]))
    published = backend.claim()
    assert published.job_id == other
    with backend.sessions.begin() as session:
        attempts.publish(
            session, published, step=1, prefix=f"jobs/{other}/1/result/", sha256="0", files=[], scores={}, measured={}
        )
    needed = [
        f"jobs/{job_id}/1/resume/4/run",
        f"jobs/{job_id}/{running.number}/resume/8/run",
        f"jobs/{other}/1/result/manifest.json",
        f"jobs/{ids.new('job')}/1/result/manifest.json",
    ]
    unreferenced = [
        f"jobs/{job_id}/1/resume/3/run",
        f"jobs/{job_id}/1/result/manifest.json",
        f"jobs/{job_id}/{running.number + 1}/run",
        f"jobs/{other}/1/resume/0/run",
        f"jobs/{other}/2/result/manifest.json",
    ]
    for key in needed + unreferenced:
        backend.storage.put(key, b"1")
    assert cleanup.delete_unreferenced(backend.sessions, backend.storage) == len(unreferenced)
    assert backend.storage.keys("jobs/") == sorted(needed)


def test_an_unknown_object_is_kept_for_a_day_and_if_older_than_the_database(
    backend: Backend, job_id: str, aged: Aged
) -> None:
    referenced = backend.storage.keys("datasets/")
    unknown = ["datasets/unknown.jsonl", f"jobs/{ids.new('job')}/1/run", "doctor/req_1/large"]
    for key in unknown:
        backend.storage.put(key, b"1")
    assert cleanup.delete_unreferenced(backend.sessions, backend.storage) == 0, "they are new"
    aged.age = timedelta(hours=23)
    assert cleanup.delete_unreferenced(backend.sessions, aged) == 0, "an upload may still run"
    aged.age = timedelta(days=4)
    assert cleanup.delete_unreferenced(backend.sessions, aged) == 0, "they are older than the first key"
    aged.age = timedelta(days=2)
    bucket_owner.claim(aged, "svc_other")
    assert cleanup.delete_unreferenced(backend.sessions, aged) == 0, "the bucket belongs to another service"
    with backend.sessions.begin() as session:
        bucket_owner.claim(aged, bucket_owner.service_id(session))
    assert cleanup.delete_unreferenced(backend.sessions, aged) == len(unknown)
    assert backend.storage.keys("") == [*referenced, OWNER]


def test_the_sweep_deletes_expired_rows_and_their_objects(backend: Backend, job_id: str, aged: Aged) -> None:
    prefix = f"jobs/{job_id}/1/result/"
    backend.storage.put(f"{prefix}manifest.json", b"1")
    with backend.sessions.begin() as session:
        attempts.publish(
            session,
            claims.claim(session, "w", 60) or pytest.fail("no job is waiting"),
            step=1,
            prefix=prefix,
            sha256="0",
            files=[],
            scores={},
            measured={},
            days=1,
        )
        for change in (
            "jobs SET finished_at = now() - interval '1 year'",
            "datasets SET uploaded_at = now() - interval '1 year'",
            "checkpoints SET expires_at = now()",
        ):
            session.execute(text(f"UPDATE {change}"))
    key = backend.storage.keys("datasets/")[0]
    with backend.sessions.begin() as session:
        other = datasets.Content(key.split("/")[1].split(".")[0], 30, 2, Format.TEXT)
        datasets.add(session, "theirs", "same.jsonl", other)
    sweep = backend.sweep(aged)
    sweep.expire()
    assert backend.storage.keys("") == [key], "another tenant's dataset is the same object"
    assert backend.events(job_id)[-1] == "checkpoint.expired"
    with backend.sessions.begin() as session:
        session.execute(text("UPDATE datasets SET deleted_at = now()"))
    sweep.expire()
    assert backend.storage.keys("") == [key], "the sweep did this a moment ago"
    with backend.sessions.begin() as session:
        session.execute(text("UPDATE chores SET done_at = now() - interval '1 day'"))
    sweep.expire()
    assert backend.storage.keys("") == []


def test_all_expired_rows_are_deleted_in_batches(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset of the job, which waits, is kept."""
    monkeypatch.setattr(retention, "BATCH", 2)
    age = "now() - interval '1 year'"
    rows = f"""
    UPDATE datasets SET uploaded_at = {age};
    INSERT INTO datasets (id, tenant, name, format, sha256, bytes, records, object_key, uploaded_at)
    SELECT 'file_' || n, 'ours', 'x', 'text', n::text, 1, 1, 'x' || n, {age} FROM generate_series(1, 5) AS n;
    INSERT INTO checkpoints (id, job_id, attempt, step, prefix, sha256, files, bytes, scores, expires_at)
    SELECT 'ckpt_' || n, '{job_id}', 1, 1, 'x', '', '[]', n, '{{}}', {age} FROM generate_series(1, 5) AS n;
    INSERT INTO webhooks (id, tenant, url, events, secret) VALUES ('hook_1', 'ours', 'x', '[]', 'x');
    INSERT INTO webhook_deliveries (id, webhook_id, type, body, state, created_at)
    SELECT 'dlv_' || n, 'hook_1', 'x', 'x', 'failed', {age} FROM generate_series(1, 5) AS n;
    INSERT INTO imports (id, tenant, name, state, skip_percentage, created_at)
    SELECT 'imp_' || n, 'ours', 'x', 'done', 0, {age} FROM generate_series(1, 5) AS n;
    """
    left = """
    SELECT (SELECT count(*) FROM datasets WHERE deleted_at IS NULL), (SELECT count(*) FROM checkpoints),
           (SELECT count(*) FROM webhook_deliveries), (SELECT count(*) FROM imports)
    """
    with backend.sessions.begin() as session:
        for statement in filter(str.strip, rows.split(";")):
            session.execute(text(statement))
    backend.sweep().expire()
    with backend.sessions.begin() as session:
        assert tuple(session.execute(text(left)).one()) == (1, 0, 0, 0)


def test_nothing_of_a_deleted_job_stays_whoever_dies(backend: Backend, job_id: str, aged: Aged) -> None:
    attempt = backend.claim()
    prefix, late = f"jobs/{job_id}/1/", backend.settings.scratch / job_id / "1"
    for key in (f"{prefix}resume/4/run", f"{prefix}result/manifest.json"):
        backend.storage.put(key, b"1")
    for action in (actions.cancel, actions.delete):
        backend.request(action, job_id)
    # The worker lives, and cleans up after its attempt, which it has lost.
    cleanup.delete_leftovers(backend.sessions, backend.storage, job_id, attempt.number)
    assert backend.storage.keys("jobs/") == []
    # The worker has died, and has left an object and a folder.
    backend.storage.put(f"{prefix}result/model.safetensors", b"1")
    late.mkdir(parents=True)
    (late / "job.json").write_text("{}")
    for path in (late, late.parent):
        os.utime(path, (time.time() - 90_000,) * 2)
    sweep = backend.sweep(aged)
    sweep.clear_scratch()
    assert late.exists(), "a running job of another service writes such files"
    os.utime(late / "job.json", (time.time() - 90_000,) * 2)
    (empty := backend.settings.scratch / "job_empty").mkdir()
    sweep.clear_scratch()
    assert not late.parent.exists()
    os.utime(empty, (time.time() - 90_000,) * 2)
    sweep.clear_scratch()
    assert not empty.exists()
    sweep.expire()
    assert backend.storage.keys("jobs/") == []


@pytest.mark.parametrize(
    "change", ["worker = 'another'", "attempt = 0, status = 'queued', worker = NULL"], ids=["runs", "can start"]
)
def test_a_worker_that_lost_its_job_deletes_nothing_of_another_attempt_with_the_same_number(
    backend: Backend, job_id: str, change: str
) -> None:
    """After a restore of the database, the number of an attempt is used again."""
    keys = [f"jobs/{job_id}/1/result/model.safetensors", f"jobs/{job_id}/1/resume/4/run"]
    with Running(supervisor(backend, "hang_with_child")) as attempt:
        wait_for(lambda: backend.job(job_id).progress == 0.5)
        for key in keys:
            backend.storage.put(key, b"of the other attempt")
        with backend.sessions.begin() as session:
            session.execute(text(f"UPDATE jobs SET {change}"))
    assert backend.storage.keys("jobs/") == sorted(keys)
    assert (attempt.files.folder / "pids").exists()


def test_the_folders_of_former_attempts_are_deleted(backend: Backend, job_id: str) -> None:
    with backend.sessions.begin() as session:
        attempts.release(session, backend.claim())
    backend.claim()
    folders = [backend.settings.scratch / job_id / name for name in ("1", "2", "3")]
    for folder in folders:
        folder.mkdir(parents=True)
    cleanup.clear_scratch(backend.sessions, backend.settings.scratch)
    assert [folder.exists() for folder in folders] == [False, True, True], "attempt 2 runs"
    backend.request(actions.pause, job_id)
    with backend.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET status = 'paused'"))
    cleanup.clear_scratch(backend.sessions, backend.settings.scratch)
    assert [folder.exists() for folder in folders] == [False, False, True], "attempt 3 may have begun meanwhile"


def test_an_upload_gets_its_row_only_if_its_object_exists(backend: Backend) -> None:
    content = datasets.Content("1" * 64, 30, 2, Format.TEXT)
    with backend.sessions.begin() as session, pytest.raises(ProblemError, match="Upload the file again"):
        datasets.require_stored(session, backend.storage, content)
    backend.storage.put(content.object_key, b"1")
    with backend.sessions.begin() as session:
        datasets.require_stored(session, backend.storage, content)


def test_the_file_of_an_import_stays_until_the_import_has_ended(backend: Backend, job_id: str, aged: Aged) -> None:
    rows = {state: ids.new("imp") for state in ImportState}
    with backend.sessions.begin() as session:
        session.add_all(
            Import(id=import_id, tenant=TENANT, name="x", state=state, skip_percentage=0.0)
            for state, import_id in rows.items()
        )
    unknown = ids.new("imp")
    for import_id in (*rows.values(), unknown):
        backend.storage.put(imports.key(import_id), b"1")
    needed = {imports.key(rows[state]) for state in (ImportState.RECEIVING, ImportState.CHECKING)}
    assert cleanup.delete_unreferenced(backend.sessions, backend.storage) == 2
    assert set(backend.storage.keys("imports/")) == needed | {imports.key(unknown)}
    assert cleanup.delete_unreferenced(backend.sessions, aged) == 1
    assert set(backend.storage.keys("imports/")) == needed


def test_the_parts_of_an_upload_that_expired_are_deleted(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Import(id=ids.new("imp"), tenant=TENANT, name="x", state=ImportState.RECEIVING, skip_percentage=0.0)
    row.upload = backend.storage.begin_upload(imports.key(row.id))
    link = backend.storage.part_link(imports.key(row.id), row.upload, 1, 1)
    assert httpx2.put(link, content=b"1").status_code == 200
    with backend.sessions.begin() as session:
        session.add(row)
        session.flush()
        session.execute(text("UPDATE imports SET created_at = now() - interval '3 days'"))
        upload = row.upload
    assert backend.storage.parts(imports.key(row.id), upload)
    sweep = backend.sweep()
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "abort_upload", lambda *_: 1 / 0)
        sweep.run_once([sweep.expire_uploads])
    with backend.sessions.begin() as session:
        assert session.get_one(Import, row.id).state == ImportState.RECEIVING, "the next sweep tries again"
    sweep.expire()
    assert backend.storage.parts(imports.key(row.id), upload) == {}
    with backend.sessions.begin() as session:
        assert session.get_one(Import, row.id).state == ImportState.FAILED


def test_an_upload_whose_parts_cannot_be_deleted_keeps_no_other_garbage(backend: Backend, aged: Aged) -> None:
    class Refusing(Aged):
        def abort_upload(self, key: str, upload: str) -> None:
            if upload == "refused":
                raise ClientError({"Error": {"Code": "InternalError"}}, "AbortMultipartUpload")
            super().abort_upload(key, upload)

    unknown = f"jobs/{ids.new('job')}/1/run"
    backend.storage.put(unknown, b"1")
    rows = [
        Import(id=ids.new("imp"), tenant=TENANT, name="x", state=ImportState.RECEIVING, skip_percentage=0.0)
        for _ in range(2)
    ]
    rows[0].upload, rows[1].upload = "refused", backend.storage.begin_upload(imports.key(rows[1].id))
    with backend.sessions.begin() as session:
        session.add_all(rows)
        session.flush()
        session.execute(text("UPDATE imports SET created_at = now() - interval '3 days'"))
    storage = Refusing(backend.settings)
    backend.sweep(storage).expire()
    with backend.sessions.begin() as session:
        states = [session.get_one(Import, row.id).state for row in rows]
    assert states == [ImportState.RECEIVING, ImportState.FAILED]
    assert backend.storage.keys("jobs/") == []


def test_an_object_that_cannot_be_deleted_keeps_no_other_garbage(backend: Backend, aged: Aged) -> None:
    kept, *others = sorted(f"jobs/{ids.new('job')}/1/run" for _ in range(3))
    others.append(imports.key(ids.new("imp")))

    class Refusing(Aged):
        """Lists one object per page."""

        def pages(self, prefix: str) -> Iterator[list[StoredObject]]:
            yield from ([item] for page in super().pages(prefix) for item in page)

        def delete(self, keys: Sequence[str]) -> None:
            super().delete([key for key in keys if key != kept])
            if kept in keys:
                raise ClientError({"Error": {"Code": "AccessDenied"}}, "DeleteObjects")

    for key in (kept, *others):
        aged.put(key, b"1")
    assert cleanup.delete_unreferenced(backend.sessions, Refusing(backend.settings)) == len(others)
    assert [aged.keys("jobs/"), aged.keys("imports/")] == [[kept], []]
    aged.delete([kept])


def test_a_storage_that_fails_keeps_neither_local_files_nor_the_states_of_other_jobs(
    backend: Backend, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Storage):
        def keys(self, prefix: str) -> list[str]:
            if prefix.startswith(f"jobs/{job_id}/"):
                raise ClientError({"Error": {"Code": "InternalError"}}, "ListObjects")
            return super().keys(prefix)

    other = backend.add_job(backend.add_dataset(["three " * 1024, "four"]))
    for _ in (job_id, other):
        with backend.sessions.begin() as session:
            attempts.save_resume(session, attempt := backend.claim(), {"step": 4, "files": []})
        backend.request(actions.cancel, attempt.job_id)
    (left := backend.settings.scratch / job_id / "1").mkdir(parents=True)
    storage = Refusing(backend.settings)
    sweep = backend.sweep(storage)
    sweep.run_once([sweep.clean_up, sweep.clear_scratch])
    assert not left.parent.exists()
    assert cleanup.ended_with_states(backend.sessions, 9) == [(job_id, 1)]
    backend.request(actions.delete, other)


def test_jobs_whose_states_cannot_be_deleted_leave_a_place_to_the_others(backend: Backend, job_id: str) -> None:
    job_ids = {job_id, backend.add_job(backend.add_dataset(["three " * 1024, "four"]))}
    for _ in job_ids:
        with backend.sessions.begin() as session:
            attempts.save_resume(session, attempt := backend.claim(), {"step": 4, "files": []})
        backend.request(actions.cancel, attempt.job_id)
    found = {cleanup.ended_with_states(backend.sessions, 1)[0][0] for _ in range(50)}
    assert found == job_ids, "the order is random"
