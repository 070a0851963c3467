"""A deleted job leaves no row, and only a job that nothing needs can be deleted."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from core import ids, webhooks
from core.errors import Code, ProblemError
from core.jobs import actions, attempts, fairness, jobs
from core.specs import JobSpec
from core.states import Status
from core.tables import Base, Job, WebhookDelivery
from tests.core.conftest import MakeJob, Sessions
from tests.core.jobs.test_attempts import claimed, row

FILES = [{"name": "config.json", "size": 70, "sha256": "0"}]


def publish(sessions: Sessions) -> None:
    """Do what a worker would do with the next job."""
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.add_metrics(session, attempt, [(1, {"loss": 1.0}), (2, {"loss": 0.5})])
        attempts.publish(session, attempt, step=2, prefix="p", sha256="0", files=FILES, scores={}, measured={})


@pytest.fixture
def published(sessions: Sessions, spec: JobSpec) -> str:
    """Id of a job with metadata, an idempotency key, metrics and a checkpoint."""
    request = JobSpec.model_validate({**spec.model_dump(mode="json"), "metadata": {"team": "a"}})
    with sessions.begin() as session:
        job = jobs.create(session, "ours", request, "k", "body")
    publish(sessions)
    return job.id


def delete(sessions: Sessions, job_id: str) -> Job:
    with sessions.begin() as session:
        return actions.delete(session, "ours", job_id)


def tables_of(sessions: Sessions, job_id: str) -> set[str]:
    """Return the tables with a row of this job."""
    with sessions.begin() as session:
        found = set()
        for table in Base.metadata.sorted_tables:
            column = table.c.get("id" if table is Job.__table__ else "job_id")
            if column is not None and session.execute(select(table).where(column == job_id)).first():
                found.add(table.name)
        return found


def test_every_row_of_a_deleted_job_is_gone_and_no_other(sessions: Sessions, published: str, make_job: MakeJob) -> None:
    other = make_job()
    publish(sessions)
    tables = {"jobs", "job_events", "job_metrics", "checkpoints", "job_labels", "idempotency_keys"}
    assert tables_of(sessions, published) == tables
    kept = tables_of(sessions, other)
    deleted = delete(sessions, published)
    assert (deleted.id, deleted.status) == (published, Status.SUCCEEDED)
    assert tables_of(sessions, published) == set()
    assert tables_of(sessions, other) == kept
    with sessions.begin() as session:
        assert fairness.stored_bytes(session, "ours").checkpoints == 70
        assert jobs.find_by_idempotency_key(session, "ours", "k", "another body") is None
    for tenant in ("ours", "theirs"):
        with pytest.raises(ProblemError) as caught, sessions.begin() as session:
            actions.delete(session, tenant, published if tenant == "ours" else other)
        assert caught.value.code is Code.NOT_FOUND


def test_only_a_job_that_has_ended_is_deleted(sessions: Sessions, make_job: MakeJob) -> None:
    job_ids = [make_job() for _ in range(3)]
    running = claimed(sessions).job_id
    with sessions.begin() as session:
        actions.pause(session, "ours", job_ids[1])
    for job_id in job_ids:
        status = row(sessions, job_id).status
        with pytest.raises(ProblemError, match=f"it is {status}.*/jobs/{job_id}/cancel ends it") as caught:
            delete(sessions, job_id)
        assert caught.value.code is Code.CONFLICT
    assert {row(sessions, job_id).status for job_id in job_ids} == {"running", "paused", "queued"}
    with sessions.begin() as session:
        actions.cancel(session, "ours", running)
    assert delete(sessions, running).status == Status.CANCELLED


def test_webhooks_receive_the_deletion(sessions: Sessions, published: str) -> None:
    with sessions.begin() as session:
        webhooks.create(session, "ours", "https://example.com/", ["job.deleted"])
        webhooks.create(session, "theirs", "https://example.com/", [])
    delete(sessions, published)
    with sessions.begin() as session:
        (delivery,) = session.scalars(select(WebhookDelivery)).all()
        assert delivery.type == "job.deleted"
        assert f'"job_id": "{published}"' in delivery.body


def test_a_job_whose_result_another_job_needs_is_not_deleted(sessions: Sessions, spec: JobSpec, published: str) -> None:
    request = spec.model_copy(update={"model": published})
    with sessions.begin() as session:
        user = jobs.create(session, "ours", request, None, "").id
    with pytest.raises(ProblemError, match=f"{user} uses the result of {published}") as caught:
        delete(sessions, published)
    assert caught.value.code is Code.CONFLICT
    with sessions.begin() as session:
        actions.cancel(session, "ours", user)
    delete(sessions, published)
    deleted = pytest.raises(ProblemError, match=f"The checkpoint of {published} was deleted")
    with deleted as caught, sessions.begin() as session:
        jobs.create(session, "ours", request, None, "")
    assert (caught.value.code, caught.value.flaws[0].param) == (Code.MODEL_NOT_FOUND, "model")


def test_a_deletion_waits_for_a_job_that_is_being_created_with_the_result(
    sessions: Sessions, spec: JobSpec, published: str
) -> None:
    request = spec.model_copy(update={"model": published})
    started = threading.Event()

    def start_deletion() -> Job:
        started.set()
        return delete(sessions, published)

    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            user = jobs.create(session, "ours", request, None, "").id
            future = pool.submit(start_deletion)
            started.wait()
            with pytest.raises(TimeoutError):
                future.result(0.3)
        with pytest.raises(ProblemError, match=user):
            future.result()
    assert row(sessions, published).status == Status.SUCCEEDED


def test_an_action_that_waits_for_a_deletion_finds_no_job(sessions: Sessions, published: str) -> None:
    started = threading.Event()

    def cancel() -> None:
        with sessions.begin() as session:
            started.set()
            actions.cancel(session, "ours", published)

    with ThreadPoolExecutor(1) as pool:
        with sessions.begin() as session:
            actions.delete(session, "ours", published)
            session.flush()
            future = pool.submit(cancel)
            started.wait()
            with pytest.raises(TimeoutError):
                future.result(0.3)
        with pytest.raises(ProblemError) as caught:
            future.result()
        assert caught.value.code is Code.NOT_FOUND


def test_a_job_id_that_was_never_used_is_not_found(sessions: Sessions) -> None:
    for unknown in (ids.new("job"), "nonsense"):
        with pytest.raises(ProblemError) as caught:
            delete(sessions, unknown)
        assert caught.value.code is Code.NOT_FOUND
