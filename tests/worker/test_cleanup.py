"""Objects that no row names go; what is named, on its way or another one's stays."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from core import ids
from core.access import keys
from core.access.keys import Scope
from core.datasets import datasets
from core.errors import ProblemError
from core.infra import queue
from core.infra.storage import Storage, StoredObject
from core.jobs import attempts
from seft.data.records import Format
from tests.worker.conftest import TENANT, House
from worker import cleanup
from worker.sweep import Sweep


class Aged(Storage):
    """All its objects were written so long before they were."""

    age = timedelta(days=2)

    def pages(self, prefix: str) -> Iterator[list[StoredObject]]:
        for page in super().pages(prefix):
            yield [replace(found, modified=found.modified - self.age) for found in page]

    def modified(self, key: str) -> datetime | None:
        found = super().modified(key)
        return found and found - self.age


@pytest.fixture
def aged(house: House) -> Aged:
    """Older than a day, and younger than the database."""
    with house.sessions.begin() as session:
        keys.issue(session, TENANT, "first", Scope.ADMIN)
        session.execute(text("UPDATE api_keys SET created_at = now() - interval '3 days'"))
    return Aged(house.settings)


def test_of_jobs_only_what_is_running_saved_or_published_stays(house: House, job_id: str) -> None:
    released = house.claim()
    saved = {"step": 4, "files": [{"name": "run", "key": f"jobs/{job_id}/1/resume/4/run", "size": 1}]}
    with house.sessions.begin() as session:
        attempts.save_resume(session, released, saved)
        attempts.release(session, released)
    running = house.claim()
    other = house.add_job(house.add_dataset(["three", "four"]))
    published = house.claim()
    assert published.job_id == other
    with house.sessions.begin() as session:
        attempts.publish(
            session, published, step=1, prefix=f"jobs/{other}/1/result/", sha256="0", files=[], scores={}, measured={}
        )
    kept = [
        f"jobs/{job_id}/1/resume/4/run",
        f"jobs/{job_id}/{running.number}/resume/8/run",
        f"jobs/{other}/1/result/manifest.json",
        f"jobs/{ids.new('job')}/1/result/manifest.json",
    ]
    gone = [
        f"jobs/{job_id}/1/resume/3/run",
        f"jobs/{job_id}/1/result/manifest.json",
        f"jobs/{job_id}/{running.number + 1}/run",
        f"jobs/{other}/1/resume/0/run",
        f"jobs/{other}/2/result/manifest.json",
    ]
    for key in kept + gone:
        house.storage.put(key, b"1")
    assert cleanup.delete_unreferenced(house.sessions, house.storage) == len(gone)
    assert house.storage.keys("jobs/") == sorted(kept)


def test_an_object_of_which_nothing_is_known_is_left_for_a_day_and_where_it_is_another_databases(
    house: House, job_id: str, aged: Aged
) -> None:
    named = house.storage.keys("datasets/")
    strange = ["datasets/strange.jsonl", f"jobs/{ids.new('job')}/1/run"]
    for key in strange:
        house.storage.put(key, b"1")
    assert cleanup.delete_unreferenced(house.sessions, house.storage) == 0, "they are new"
    aged.age = timedelta(days=4)
    assert cleanup.delete_unreferenced(house.sessions, aged) == 0, "they are older than the first key"
    aged.age = timedelta(days=2)
    assert cleanup.delete_unreferenced(house.sessions, aged) == 2
    assert house.storage.keys("") == named


def test_the_sweep_lets_go_of_what_has_expired_with_all_its_objects(house: House, job_id: str, aged: Aged) -> None:
    prefix = f"jobs/{job_id}/1/result/"
    house.storage.put(f"{prefix}manifest.json", b"1")
    with house.sessions.begin() as session:
        attempts.publish(
            session,
            attempts.claim(session, "w", 60) or pytest.fail("no job waits"),
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
            "datasets SET created_at = now() - interval '1 year'",
            "checkpoints SET expires_at = now()",
        ):
            session.execute(text(f"UPDATE {change}"))
    kept = house.storage.keys("datasets/")[0]
    with house.sessions.begin() as session:
        other = datasets.Content(kept.split("/")[1].split(".")[0], 30, 2, Format.TEXT)
        datasets.add(session, "theirs", "same.jsonl", other)
    sweep = Sweep("worker-1", house.settings, queue.make_app(house.settings), house.sessions, aged)
    sweep.tidy()
    assert house.storage.keys("") == [kept], "another tenant's dataset is the same object"
    assert house.events(job_id)[-1] == "checkpoint.expired"
    with house.sessions.begin() as session:
        session.execute(text("UPDATE datasets SET deleted_at = now()"))
    sweep.tidy()
    assert house.storage.keys("") == [kept], "it was done a moment ago"
    with house.sessions.begin() as session:
        session.execute(text("UPDATE chores SET done_at = now() - interval '1 day'"))
    sweep.tidy()
    assert house.storage.keys("") == []


def test_an_upload_gets_its_row_only_while_its_object_is_there(house: House) -> None:
    content = datasets.Content("1" * 64, 30, 2, Format.TEXT)
    with house.sessions.begin() as session, pytest.raises(ProblemError, match="Send it again"):
        datasets.require_stored(session, house.storage, content)
    house.storage.put(content.object_key, b"1")
    with house.sessions.begin() as session:
        datasets.require_stored(session, house.storage, content)
