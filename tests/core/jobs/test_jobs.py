"""Create, find and list the jobs of a tenant."""

import math
from collections.abc import Callable

import pytest

from core import ids
from core.datasets import datasets
from core.errors import Code, ProblemError
from core.jobs import actions, attempts, jobs
from core.jobs.jobs import Order
from core.specs import JobSpec
from core.states import Status
from core.tables import Job
from seft.data.records import Format
from tests.core.conftest import AddDataset, MakeJob, Sessions, evaluate_on, retain
from tests.core.jobs.test_attempts import claimed, event_types


def create(sessions: Sessions, spec: JobSpec, key: str | None = None, tenant: str = "ours") -> Job:
    """Create a job as admission does, unless its key has created one before."""
    with sessions.begin() as session:
        existing = jobs.find_by_idempotency_key(session, tenant, key, spec.fingerprint())
        return existing or jobs.create(session, tenant, spec, key, spec.fingerprint())


def rejection_code(sessions: Sessions, spec: JobSpec, key: str | None = None, tenant: str = "ours") -> Code:
    with pytest.raises(ProblemError) as caught:
        create(sessions, spec, key, tenant)
    return caught.value.code


def test_a_new_job_is_queued_with_all_defaults(sessions: Sessions, spec: JobSpec) -> None:
    job = create(sessions, spec)
    assert (job.status, job.attempt, job.failures, job.scores) == (Status.QUEUED, 0, 0, {})
    assert JobSpec.model_validate(job.spec) == spec
    assert event_types(sessions, job.id) == ["job.created"]


def test_the_same_key_and_body_create_one_job(sessions: Sessions, spec: JobSpec) -> None:
    assert create(sessions, spec, "k").id == create(sessions, spec, "k").id
    assert create(sessions, spec, "another key").id != create(sessions, spec, "k").id


def test_the_same_key_with_another_body_is_rejected(sessions: Sessions, spec: JobSpec) -> None:
    create(sessions, spec, "k")
    assert rejection_code(sessions, spec.model_copy(update={"sparsity": 0.5}), "k") is Code.IDEMPOTENCY_CONFLICT


def test_a_key_in_use_by_another_request_is_rejected(sessions: Sessions, spec: JobSpec) -> None:
    with sessions.begin() as session:
        assert jobs.find_by_idempotency_key(session, "ours", "k", "body") is None
        assert rejection_code(sessions, spec, "k") is Code.IDEMPOTENCY_IN_FLIGHT
        create(sessions, spec, "another key")
    create(sessions, spec, "k")


def test_tenants_do_not_share_idempotency_keys(sessions: Sessions, spec: JobSpec) -> None:
    create(sessions, spec, "k")
    assert rejection_code(sessions, spec, "k", tenant="theirs") is Code.INVALID_REQUEST  # not the dataset's owner


Name = Callable[[JobSpec, str], JobSpec]
SECOND: dict[str, Name] = {"repair.retain_dataset": retain, "evaluate.dataset": evaluate_on}
"""Ways to name a second dataset in a request, by field."""


@pytest.mark.parametrize("field", SECOND)
def test_a_second_dataset_must_be_one_of_the_tenant_that_is_not_deleted(
    field: str, sessions: Sessions, spec: JobSpec, add_dataset: AddDataset
) -> None:
    named = add_dataset(1 << 20)
    job = create(sessions, SECOND[field](spec, named))
    columns = {"repair.retain_dataset": job.retain_dataset_id, "evaluate.dataset": job.evaluate_dataset_id}
    assert (job.dataset_id, columns) == (spec.dataset, {**dict.fromkeys(columns), field: named})
    deleted = add_dataset(1 << 20)
    with sessions.begin() as session:
        datasets.delete(session, "ours", deleted)
    for dataset_id in (ids.new("file"), add_dataset(1 << 20, tenant="theirs"), deleted):
        with pytest.raises(ProblemError, match="There is no dataset") as caught:
            create(sessions, SECOND[field](spec, dataset_id))
        (flaw,) = caught.value.flaws
        assert (caught.value.code, flaw.param, flaw.value) == (Code.INVALID_REQUEST, field, dataset_id)


@pytest.mark.parametrize("field", SECOND)
def test_a_second_dataset_that_is_too_small_or_a_copy_is_rejected(
    field: str, sessions: Sessions, spec: JobSpec, add_dataset: AddDataset
) -> None:
    for dataset_id, rule, value in (
        (add_dataset(1023), "must have at least 1024 bytes", "1023 bytes"),
        (add_dataset(1 << 20, sha256="0" * 64), "must have other records than the dataset in dataset", "the same"),
    ):
        with pytest.raises(ProblemError) as caught:
            create(sessions, SECOND[field](spec, dataset_id))
        (flaw,) = caught.value.flaws
        assert (caught.value.code, flaw.param) == (Code.INVALID_REQUEST, field)
        assert flaw.rule.startswith(rule)
        assert flaw.value.startswith(value)
    for dataset_id in (add_dataset(1024), add_dataset(30, Format.MESSAGES)):
        assert create(sessions, SECOND[field](spec, dataset_id)), "a chat template can add any number of tokens"


def test_a_copy_of_the_retained_dataset_is_not_evaluated_on(
    sessions: Sessions, retaining: JobSpec, add_dataset: AddDataset
) -> None:
    with sessions.begin() as session:
        sha256 = datasets.get(session, "ours", str(retaining.repair.retain_dataset)).sha256
    with pytest.raises(ProblemError, match=r"other records than the dataset in repair\.retain_dataset"):
        create(sessions, evaluate_on(retaining, add_dataset(1 << 20, sha256=sha256)))
    assert create(sessions, evaluate_on(retaining, add_dataset(1 << 20)))


@pytest.mark.parametrize("order", Order)
def test_jobs_come_in_every_order_page_by_page(sessions: Sessions, spec: JobSpec, order: Order) -> None:
    values = [(0.5, 30.0), (0.7, None), (0.5, 9.5), (0.9, 30.0), (0.7, 101.0), (0.6, None)]
    sparsity, perplexity, age = {}, {}, {}
    for number, (fraction, score) in enumerate(values):
        job = create(sessions, spec.model_copy(update={"sparsity": fraction}))
        sparsity[job.id], perplexity[job.id], age[job.id] = fraction, score or math.inf, -number
        with sessions.begin() as session:
            session.get_one(Job, job.id).scores = {"repaired": score} if score else {"dense": 1.0}
    keys: dict[Order, Callable[[str], tuple[float, ...]]] = {
        Order.NEWEST: lambda job: (age[job],),
        Order.OLDEST: lambda job: (-age[job],),
        Order.SPARSEST: lambda job: (-sparsity[job], age[job]),
        Order.BEST: lambda job: (perplexity[job], age[job]),
    }
    job_ids: list[str] = []
    more = True
    with sessions.begin() as session:
        while more:
            after = job_ids[-1] if job_ids else None
            rows, more = jobs.page(session, "ours", order=order, after=after, limit=2)
            job_ids += [row.id for row in rows]
        if order in {Order.NEWEST, Order.OLDEST}:
            assert jobs.page(session, "theirs", order=order, after=job_ids[0], limit=9)[0] == []
    assert job_ids == sorted(age, key=keys[order])


@pytest.mark.parametrize("order", Order)
def test_a_list_says_so_if_it_cannot_continue_after_a_deleted_job(
    sessions: Sessions, spec: JobSpec, make_job: MakeJob, order: Order
) -> None:
    first, deleted, last = (make_job() for _ in range(3))
    with sessions.begin() as session:
        actions.cancel(session, "ours", deleted)
        actions.delete(session, "ours", deleted)
    following = {Order.NEWEST: first, Order.OLDEST: last}
    for tenant, after in (("ours", deleted), ("theirs", first)):
        with sessions.begin() as session:
            if order in following:
                rows, _ = jobs.page(session, tenant, order=order, after=after, limit=9)
                assert [row.id for row in rows] == [following[order]] * (tenant == "ours")
                continue
            with pytest.raises(ProblemError, match=f"There is no job {after} .* first page") as caught:
                jobs.page(session, tenant, order=order, after=after, limit=9)
            assert caught.value.code is Code.NOT_FOUND


def test_explicit_defaults_give_the_same_fingerprint(spec: JobSpec) -> None:
    explicit = JobSpec.model_validate({**spec.model_dump(exclude_unset=True), "priority": 0, "metadata": {}})
    assert explicit.fingerprint() == spec.fingerprint()


def test_pages_contain_every_job_once_newest_first(sessions: Sessions, make_job: MakeJob) -> None:
    created = [make_job() for _ in range(7)]
    job_ids: list[str] = []
    more = True
    while more:
        with sessions.begin() as session:
            rows, more = jobs.page(session, "ours", after=job_ids[-1] if job_ids else None, limit=3)
        job_ids += [job.id for job in rows]
    assert job_ids == sorted(created, reverse=True)


def test_pages_can_be_filtered_by_status(sessions: Sessions, make_job: MakeJob) -> None:
    running, queued = make_job(), make_job()
    claimed(sessions)
    with sessions.begin() as session:
        assert [job.id for job in jobs.page(session, "ours", status=Status.RUNNING, limit=5)[0]] == [running]
        assert [job.id for job in jobs.page(session, "ours", status=Status.QUEUED, limit=5)[0]] == [queued]


def test_another_tenant_sees_nothing(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    with sessions.begin() as session:
        assert jobs.page(session, "theirs", limit=5) == ([], False)
        for call in (jobs.get, actions.cancel):
            with pytest.raises(ProblemError) as caught:
                call(session, "theirs", job_id)
            assert caught.value.code is Code.NOT_FOUND
    assert event_types(sessions, job_id) == ["job.created"]


def test_the_queue_is_counted_by_priority_and_age(sessions: Sessions, make_job: MakeJob) -> None:
    low, first, second, running = make_job(-1), make_job(), make_job(), make_job(9)
    claimed(sessions)
    with sessions.begin() as session:
        places = [jobs.position(session, session.get_one(Job, job_id)) for job_id in (first, second, low, running)]
    assert places == [1, 2, 3, None]


def test_cancel_takes_effect_at_once_and_is_idempotent(sessions: Sessions, make_job: MakeJob) -> None:
    running, queued = make_job(), make_job()
    claimed(sessions)
    for job_id in (running, queued, running):
        with sessions.begin() as session:
            job = actions.cancel(session, "ours", job_id)
        assert job.status == Status.CANCELLED
        assert job.finished_at is not None
    assert event_types(sessions, running) == ["job.created", "job.claimed", "job.cancelled"]


def test_a_finished_job_cannot_be_cancelled(sessions: Sessions, make_job: MakeJob) -> None:
    job_id = make_job()
    attempt = claimed(sessions)
    with sessions.begin() as session:
        attempts.publish(session, attempt, step=1, prefix="p", sha256="0", files=[], scores={}, measured={})
    with pytest.raises(ProblemError, match="succeeded") as caught, sessions.begin() as session:
        actions.cancel(session, "ours", job_id)
    assert caught.value.code is Code.CONFLICT
