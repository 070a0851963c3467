"""What expires when, and that data in use is kept."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Result, event, select, text
from sqlalchemy.orm import ORMExecuteState, Session

from core.datasets import datasets
from core.errors import Code, ProblemError
from core.jobs import actions, attempts, jobs, pushes, reports, retention
from core.settings import Settings
from core.spec_parts import PushSpec
from core.specs import JobSpec
from core.tables import AuditEntry
from seft.data.records import Format
from tests.core.conftest import AddDataset, MakeJob, Sessions, evaluate_on, plans
from tests.core.jobs.test_attempts import claimed, event_types

DAYS = 10


def run(sessions: Sessions, statement: str) -> None:
    with sessions.begin() as session:
        session.execute(text(statement))


def expire_datasets(sessions: Sessions, days: int = DAYS) -> list[str]:
    with sessions.begin() as session:
        return retention.expire_datasets(session, days)


def after_next_query(session: Session, act: Callable[[], None]) -> None:
    """Call `act` when the session has run its next query, and before it gets the rows."""

    def query(state: ORMExecuteState) -> Result[Any]:
        event.remove(session, "do_orm_execute", query)
        rows = state.invoke_statement().freeze()
        act()
        return rows()

    event.listen(session, "do_orm_execute", query)


def test_a_checkpoint_is_kept_as_requested_up_to_the_operators_limit(spec: JobSpec, settings: Settings) -> None:
    def days(requested: int, allowed: int) -> int:
        output = spec.output.model_copy(update={"retention_days": requested})
        limit = settings.model_copy(update={"checkpoint_days": allowed})
        return retention.checkpoint_days(spec.model_copy(update={"output": output}), limit)

    assert [days(*pair) for pair in ((30, 0), (30, 7), (7, 30), (0, 7), (0, 0))] == [30, 7, 7, 7, 0]


def test_an_expired_checkpoint_is_deleted_with_an_event_of_its_job(sessions: Sessions, make_job: MakeJob) -> None:
    job_ids = []
    for days in (DAYS, 0):
        job_ids.append(make_job())
        with sessions.begin() as session:
            attempts.publish(
                session, claimed(sessions), step=1, prefix="p", sha256="0", files=[], scores={}, measured={}, days=days
            )
    with sessions.begin() as session:
        assert retention.expire_checkpoints(session) == []
    run(sessions, "UPDATE checkpoints SET expires_at = expires_at - interval '10 days'")
    with sessions.begin() as session:
        assert len(retention.expire_checkpoints(session)) == 1
        assert [len(reports.checkpoints(session, job_id)) for job_id in job_ids] == [0, 1]
        event = reports.latest_events(session, job_ids[0], limit=1)[0]
    assert (event.type, event.data["sha256"]) == (retention.EXPIRED, "0")
    assert event_types(sessions, job_ids[1])[-1] == "job.succeeded"


@pytest.mark.usefixtures("new_database")
def test_expired_checkpoints_are_found_without_a_scan_of_all_jobs(sessions: Sessions, make_job: MakeJob) -> None:
    make_job()
    with sessions.begin() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        with plans(session) as found:
            retention.expire_checkpoints(session)
    assert "jobs_not_ended" in found[0]
    assert "Seq Scan on jobs" not in found[0]


def test_a_checkpoint_is_kept_if_its_push_was_requested_before_it_was_locked(
    sessions: Sessions, make_job: MakeJob
) -> None:
    """The query that locks it has not seen the push, because the push was committed while the query ran."""
    job_id = make_job()
    with sessions.begin() as session:
        attempts.publish(
            session, claimed(sessions), step=1, prefix="p", sha256="0", files=[], scores={}, measured={}, days=DAYS
        )
        pushes.request(session, jobs.get(session, "ours", job_id), PushSpec(repository="acme/sparse"))
    run(sessions, "UPDATE checkpoints SET expires_at = expires_at - interval '10 days'")
    run(sessions, "UPDATE pushes SET due_at = NULL")
    with sessions.begin() as session:
        after_next_query(session, lambda: run(sessions, "UPDATE pushes SET due_at = now()"))
        assert retention.expire_checkpoints(session) == []
    run(sessions, "UPDATE pushes SET due_at = NULL")
    with sessions.begin() as session:
        assert len(retention.expire_checkpoints(session)) == 1


def test_a_dataset_is_kept_while_jobs_use_it_and_for_some_days_after(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    assert expire_datasets(sessions) == [], "the dataset is new"
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '9 days'")
    assert expire_datasets(sessions) == [], "the dataset is not old enough"
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '11 days'")
    job_id = make_job()
    assert expire_datasets(sessions) == [], "a job waits"
    with sessions.begin() as session:
        actions.cancel(session, "ours", job_id)
    assert expire_datasets(sessions) == [], "a job has just ended"
    run(sessions, "UPDATE jobs SET finished_at = now() - interval '9 days'")
    assert expire_datasets(sessions) == [], "a job has ended not long ago"
    run(sessions, "UPDATE jobs SET finished_at = now() - interval '11 days'")
    assert expire_datasets(sessions, 0) == [], "0 keeps datasets permanently"
    assert expire_datasets(sessions) == [spec.dataset]
    assert expire_datasets(sessions) == []
    with sessions.begin() as session:
        assert session.scalars(select(AuditEntry.target)).all() == [spec.dataset]


def test_a_dataset_is_kept_if_it_came_into_use_before_it_was_locked(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    """The query that locks it has not seen the job, because the job was committed while the query ran."""
    make_job()
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '11 days'")
    run(sessions, "UPDATE jobs SET finished_at = now() - interval '11 days'")
    with sessions.begin() as session:
        after_next_query(session, lambda: run(sessions, "UPDATE jobs SET finished_at = NULL"))
        assert retention.expire_datasets(session, DAYS) == []
    run(sessions, "UPDATE jobs SET finished_at = now() - interval '11 days'")
    assert expire_datasets(sessions) == [spec.dataset]


def test_all_datasets_of_a_job_are_kept_equally_long(
    sessions: Sessions, retaining: JobSpec, add_dataset: AddDataset
) -> None:
    request = evaluate_on(retaining, add_dataset(1 << 20))
    all_three = {request.dataset, request.repair.retain_dataset, request.evaluate.dataset}
    with sessions.begin() as session:
        job_id = jobs.create(session, "ours", request, None, "").id
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '11 days'")
    assert expire_datasets(sessions) == [], "a job waits"
    for dataset_id in all_three:
        with pytest.raises(ProblemError, match=f"{job_id} uses this dataset") as caught, sessions.begin() as session:
            datasets.delete(session, "ours", str(dataset_id))
        assert caught.value.code is Code.CONFLICT
    with sessions.begin() as session:
        actions.cancel(session, "ours", job_id)
    assert expire_datasets(sessions) == [], "a job has just ended"
    run(sessions, "UPDATE jobs SET finished_at = now() - interval '11 days'")
    assert set(expire_datasets(sessions)) == all_three


def test_an_expired_dataset_is_not_found_and_can_be_uploaded_again(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob
) -> None:
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '11 days'")
    assert expire_datasets(sessions) == [spec.dataset]
    with pytest.raises(ProblemError) as caught:
        make_job()
    assert caught.value.code is Code.INVALID_REQUEST
    content = datasets.Content("0" * 64, 4096, 2, Format.TEXT)
    with sessions.begin() as session:
        assert datasets.page(session, "ours", limit=9) == ([], False)
        with pytest.raises(ProblemError):
            datasets.get(session, "ours", spec.dataset)
        assert datasets.reuse_equal(session, "ours", "texts.jsonl", content) is None


def test_a_dataset_that_is_uploaded_again_is_as_new_as_the_upload(sessions: Sessions, spec: JobSpec) -> None:
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '11 days'")
    with sessions.begin() as session:
        again = datasets.reuse_equal(session, "ours", "texts.jsonl", datasets.Content("0" * 64, 4096, 2, Format.TEXT))
        assert again is not None
        assert again.id == spec.dataset
    assert expire_datasets(sessions) == []


def test_a_dataset_is_either_used_by_a_new_job_or_deleted(sessions: Sessions, spec: JobSpec) -> None:
    run(sessions, "UPDATE datasets SET uploaded_at = now() - interval '11 days'")
    with sessions.begin() as session:
        jobs.create(session, "ours", spec, None, "")
        assert expire_datasets(sessions) == [], "a job is being created"
    assert expire_datasets(sessions) == []
    run(sessions, "UPDATE jobs SET finished_at = now() - interval '11 days'")
    started = threading.Event()

    def make() -> str:
        with sessions.begin() as session:
            started.set()
            return jobs.create(session, "ours", spec, None, "").id

    with ThreadPoolExecutor(1) as pool, sessions.begin() as session:
        assert retention.expire_datasets(session, DAYS) == [spec.dataset]
        future = pool.submit(make)
        started.wait()
        with pytest.raises(TimeoutError):
            future.result(0.3)
        session.commit()
        with pytest.raises(ProblemError):
            future.result()


def test_a_chore_is_done_by_one_worker_and_again_after_its_interval(sessions: Sessions) -> None:
    def due(_: int = 0) -> bool:
        with sessions.begin() as session:
            return retention.claim_chore(session, "tidy", 60)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(due, range(8))) == 1
    run(sessions, "UPDATE chores SET done_at = now() - interval '61 s'")
    assert [due(), due()] == [True, False]
