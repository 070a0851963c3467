"""Create, find and list the jobs of a tenant.

Actions of the tenant are in `core.jobs.actions`, writes of a worker in `core.jobs.attempts`.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Double,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.orm import Session, aliased

from core import ids
from core.access import keys
from core.errors import Code, Flaw, ProblemError
from core.infra import tracing
from core.infra.database import page_of, try_lock
from core.jobs import fairness
from core.jobs.transitions import hold, record_event
from core.models import results
from core.spec_parts import RepairMethod
from core.specs import SPEC_VERSION, JobSpec
from core.states import STATUS_EVENT_PREFIX, Reason, Status, Transition
from core.tables import Dataset, IdempotencyKey, Job, JobLabel, Json
from seft.data.records import Format

HEADER = "Idempotency-Key"
RETAIN_DATASET, EVALUATE_DATASET = "repair.retain_dataset", "evaluate.dataset"
MAX_POSITION = 1000
"""Limit for counts of jobs and for places in the queue. Larger numbers are not computed, because that would be slow."""


class Order(StrEnum):
    """Order of a list of jobs. Jobs with equal sort values are listed newest first."""

    NEWEST = "newest"
    OLDEST = "oldest"
    SPARSEST = "sparsest"
    BEST = "best"
    """Order by the perplexity of the repaired model, lowest first. Jobs without that perplexity come last."""


def create(
    session: Session,
    tenant: str,
    spec: JobSpec,
    idempotency_key: str | None,
    body_sha256: str,
    *,
    key_id: str | None = None,
    request_id: str | None = None,
    estimate: Json | None = None,
    has_chat_template: bool = True,
) -> Job:
    """Create a job. It is queued, or paused if `auto_start` is false.

    `has_chat_template` says whether the model has one. A model without a chat template cannot read conversations.

    If there is an idempotency key, `find_by_idempotency_key` must have returned None for it in this transaction.
    Raises INVALID_REQUEST if the tenant has no such datasets or the job cannot use them, and MODEL_NOT_FOUND if the
    model was the result of a job and its checkpoint was deleted.
    """
    _require_datasets(session, tenant, spec, has_chat_template=has_chat_template)
    _require_result(session, tenant, spec.model)
    job = Job(
        id=ids.new("job"),
        tenant=tenant,
        key_id=key_id,
        request_id=request_id,
        traceparent=tracing.current_traceparent(),
        dataset_id=spec.dataset,
        retain_dataset_id=spec.repair.retain_dataset,
        evaluate_dataset_id=spec.evaluate.dataset,
        spec=spec.model_dump(mode="json"),
        spec_version=SPEC_VERSION,
        priority=spec.priority,
        status=Status.QUEUED,
        estimate=estimate,
        # The creator notifies the workers after the commit, so the sweep need not do it at once.
        notified_at=func.now(),
    )
    session.add(job)
    session.add_all(JobLabel(tenant=tenant, pair=pair, job_id=job.id) for pair in _pair_hashes(spec.metadata.items()))
    session.flush()
    record_event(session, job.id, job.attempt, f"{STATUS_EVENT_PREFIX}{Transition.CREATED}", {})
    if not spec.auto_start:
        hold(session, job.id, Reason.NOT_STARTED, f"auto_start is false. POST /jobs/{job.id}/start starts the job.")
        session.refresh(job)
    if idempotency_key is not None:
        session.add(IdempotencyKey(tenant=tenant, key=idempotency_key, body_sha256=body_sha256, job_id=job.id))
    return job


def find_by_idempotency_key(session: Session, tenant: str, key: str | None, body_sha256: str) -> Job | None:
    """Return the job that was created with this idempotency key, or None. Without a key, return None.

    Locks the key until the transaction ends. Raises IDEMPOTENCY_CONFLICT if the key was used with another body, and
    IDEMPOTENCY_IN_FLIGHT if another request has locked the key.
    """
    if key is None:
        return None
    if not try_lock(session, f"{tenant}\n{key}"):
        flaw = Flaw(
            HEADER, "must not be in use by another request", repr(key), "Send the same request again in a second."
        )
        detail = f"Another request with the Idempotency-Key {key!r} is still in progress. Try again in a second."
        raise ProblemError(Code.IDEMPOTENCY_IN_FLIGHT, detail, (flaw,))
    row = session.get(IdempotencyKey, (tenant, key))
    if row is None:
        return None
    if row.body_sha256 != body_sha256:
        flaw = Flaw(HEADER, "must always be sent with the same body", repr(key), "Use a new key for a new job.")
        detail = f"The Idempotency-Key {key!r} created {row.job_id} from another body. Use a new key for a new job."
        raise ProblemError(Code.IDEMPOTENCY_CONFLICT, detail, (flaw,))
    return session.get(Job, row.job_id)  # None if the job was deleted since the row was read


def get(session: Session, tenant: str, job_id: str, *, change: bool = False) -> Job:
    """Return the tenant's job with this id, and lock its row until the transaction ends if `change` is true.

    Raises NOT_FOUND if the tenant has no such job.
    """
    query = select(Job).where(Job.id == job_id, Job.tenant == tenant)
    if change:
        query = query.with_for_update().execution_options(populate_existing=True)
    job = session.scalar(query) if ids.is_id("job", job_id) else None
    if job is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no job {job_id!r}. GET /jobs lists yours.")
    return job


def find(session: Session, tenant: str, job_ids: Iterable[str]) -> Sequence[Job]:
    """Return the tenant's jobs with these ids. Ids without a job are ignored."""
    return session.scalars(select(Job).where(Job.tenant == tenant, Job.id.in_(list(job_ids)))).all()


def page(
    session: Session,
    tenant: str,
    *,
    status: Status | None = None,
    model: str | None = None,
    metadata: Iterable[tuple[str, str]] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    order: Order = Order.NEWEST,
    after: str | None = None,
    limit: int,
) -> tuple[Sequence[Job], bool]:
    """Return up to `limit` jobs that come after the job `after` in the given order.

    The second value is true if more jobs follow. Only jobs created at `since` or later and before `until` are
    returned. Raises NOT_FOUND if the order needs a value of the job `after` and the tenant has no such job any more.
    """
    if after is not None and order in {Order.SPARSEST, Order.BEST} and not find(session, tenant, [after]):
        detail = f"There is no job {after} after which the list could continue. Start again at the first page."
        raise ProblemError(Code.NOT_FOUND, detail)
    query = _ordered(select(Job).where(Job.tenant == tenant), tenant, order, after)
    if status is not None:
        query = query.where(Job.status == status)
    if model is not None:
        query = query.where(Job.spec["model"].astext == model)
    for pair in _pair_hashes(metadata):
        label = aliased(JobLabel)
        query = query.join(label, (label.job_id == Job.id) & (label.tenant == tenant) & (label.pair == pair))
    if since is not None:
        query = query.where(Job.id >= ids.floor("job", since))
    if until is not None:
        query = query.where(Job.id < ids.floor("job", until))
    return page_of(session, query, limit)


def _ordered(query: Select[Job], tenant: str, order: Order, after: str | None) -> Select[Job]:
    key: ColumnElement[float]
    match order:
        case Order.NEWEST:
            return query.where(Job.id < after if after else true()).order_by(Job.id.desc())
        case Order.OLDEST:
            return query.where(Job.id > after if after else true()).order_by(Job.id)
        case Order.SPARSEST:
            key = -cast(Job.spec["sparsity"].astext, Double)
        case Order.BEST:
            key = func.coalesce(cast(Job.scores["repaired"].astext, Double), math.inf)
    if after:
        last = select(key).where(Job.id == after, Job.tenant == tenant).correlate(None).scalar_subquery()
        query = query.where(or_(key > last, and_(key == last, Job.id < after)))
    return query.order_by(key, Job.id.desc())


def _pair_hashes(metadata: Iterable[tuple[str, str]]) -> list[str]:
    """Return the hashes of pairs of metadata, as in the column `JobLabel.pair`."""
    return [keys.digest(f"{name}\0{value}") for name, value in metadata]


def counts(session: Session, tenant: str) -> dict[Status, int]:
    """Return the number of jobs per status. The value `MAX_POSITION` means that many or more."""
    return {status: _count(session, tenant, status) for status in Status}


def _count(session: Session, tenant: str, status: Status) -> int:
    counted = select(Job.id).where(Job.tenant == tenant, Job.status == status).limit(MAX_POSITION)
    return session.scalar(select(func.count()).select_from(counted.subquery())) or 0


def models(session: Session, tenant: str) -> list[str]:
    """Return the models of the tenant's newest jobs without duplicates. The model of the newest job comes first."""
    newest = select(Job.id, Job.spec["model"].astext.label("model")).where(Job.tenant == tenant)
    recent = newest.order_by(Job.id.desc()).limit(MAX_POSITION).subquery()
    query = select(recent.c.model).group_by(recent.c.model).order_by(func.max(recent.c.id).desc())
    return list(session.scalars(query))


def first_in_queue(session: Session, tenant: str, *, limit: int) -> Sequence[Job]:
    """Return the tenant's first `limit` queued jobs, in the order of the queue."""
    queued = select(Job).where(Job.tenant == tenant, Job.status == Status.QUEUED)
    return session.scalars(queued.order_by(Job.priority.desc(), Job.id).limit(limit)).all()


def last_ended(
    session: Session, tenant: str, status: Status, *, limit: int, since: datetime | None = None
) -> Sequence[Job]:
    """Return the last `limit` jobs of the tenant that ended with this status (at `since` or later), newest first."""
    ended = select(Job).where(Job.tenant == tenant, Job.status == status, Job.finished_at.is_not(None))
    if since is not None:
        ended = ended.where(Job.finished_at >= since)
    return session.scalars(ended.order_by(Job.finished_at.desc(), Job.id.desc()).limit(limit)).all()


def position(session: Session, job: Job) -> int | None:
    """Return the job's expected place in the queue, from 1. Returns None if the job is not queued.

    Tenants take turns. If n jobs of its tenant are earlier, n or n + 1 jobs of each other tenant are expected before
    it. Weights of tenants and running jobs are not considered. `MAX_POSITION` means this place or a later one.
    """
    if job.status != Status.QUEUED:
        return None
    ours = {"tenant": job.tenant, "id": job.id, "priority": job.priority}
    own = session.scalar(_ahead(), ours) or 0
    others = session.scalar(_ahead_of_others(), {"tenant": job.tenant, "turns": own + 1}) or 0
    return min(1 + own + others, MAX_POSITION)


@cache
def _ahead() -> Select[int]:
    """Count the jobs of the tenant before the job. Each of the two ranges is read from the index `jobs_in_turn`."""
    priority: BindParameter[int] = bindparam("priority")
    queued = select(Job.id).where(Job.status == Status.QUEUED, Job.tenant == bindparam("tenant"))
    ranges = (Job.priority > priority, and_(Job.priority == priority, Job.id < bindparam("id")))
    both = union_all(*(select(queued.where(each).limit(MAX_POSITION).subquery().c.id) for each in ranges)).subquery()
    return select(func.count()).select_from(both)


@cache
def _ahead_of_others() -> Select[int]:
    """Count up to `turns` queued jobs of each other tenant, or one less if its first job is newer than ours."""
    tenant: BindParameter[str] = bindparam("tenant")
    waiting = fairness.waiting_tenants()
    first = select(waiting.c.id).where(waiting.c.tenant == tenant).scalar_subquery()
    newer = cast(
        func.coalesce(waiting.c.id > first, False), Integer
    )  # no `first`: our last queued job was just claimed
    turns = bindparam("turns", type_=Integer) - newer
    theirs = select(Job.id).where(Job.status == Status.QUEUED, Job.tenant == waiting.c.tenant)
    counted = theirs.limit(turns).correlate(waiting).lateral()
    rows = select(counted.c.id).select_from(waiting.join(counted, true())).where(waiting.c.tenant != tenant)
    return select(func.count()).select_from(rows.limit(MAX_POSITION).subquery())


def _require_datasets(session: Session, tenant: str, spec: JobSpec, *, has_chat_template: bool) -> None:
    """Raise INVALID_REQUEST if the tenant has no such datasets, or if one is too small or a copy of another.

    If the model has no chat template, also raise it for datasets of conversations.

    Text to retain is used for training and evaluation, so it must fill two sequences. A dataset that is too
    small here fails in every case. A larger one may still fail: the worker counts its tokens.
    """
    length = spec.repair.sequence_tokens
    judged = {"evaluate.tokens": spec.evaluate.tokens}
    uses = {
        "dataset": (spec.dataset, _longest_read(spec) | ({} if spec.evaluate.dataset else judged)),
        RETAIN_DATASET: (spec.repair.retain_dataset, {"repair.sequence_tokens": 2 * length}),
        EVALUATE_DATASET: (spec.evaluate.dataset, judged),
    }
    known = dict[str, str]()
    for field, (dataset_id, needs) in uses.items():
        if dataset_id is None:
            continue
        found = _require_dataset(session, tenant, dataset_id, field)
        if found.sha256 in known:
            rule = f"must have other records than the dataset in {known[found.sha256]}"
            raise _unusable(field, rule, "the same records", f"Use another dataset than {found.id}.")
        known[found.sha256] = field
        if found.format == Format.MESSAGES and not has_chat_template:
            rule = f"must not have the format {Format.MESSAGES}, because {spec.model!r} has no chat template"
            way_out = "Choose the instruct version of the model, or a dataset of another format."
            raise _unusable(field, rule, found.format, way_out)
        # A text has at most one token per byte. A chat template can add any number, so other formats are not checked.
        # No record is both trained on and held out, so the dataset must have enough text for both.
        if found.format == Format.TEXT and found.bytes < (tokens := sum(needs.values())):
            count = "two sequences" if field == RETAIN_DATASET else "one sequence"
            rule = f"must have at least {tokens} bytes, so that it can fill {count} of {' and one of '.join(needs)}"
            raise _unusable(
                field, rule, f"{found.bytes} bytes", f"Use a larger dataset, or lower {' or '.join(needs)}."
            )


def _longest_read(spec: JobSpec) -> dict[str, int]:
    """Return {field: tokens} of the longest sequence that pruning or training reads. Empty if neither reads any."""
    reads = {"repair.sequence_tokens": spec.repair.sequence_tokens * (spec.repair.method is not RepairMethod.NONE)}
    if spec.prune_config().reads_calibration:
        reads["prune.calibration.tokens"] = spec.prune.calibration.tokens
    field = max(reads, key=lambda name: reads[name])
    return {field: reads[field]} if reads[field] else {}


def _require_dataset(session: Session, tenant: str, dataset_id: str, field: str) -> Dataset:
    """Return the dataset, and keep it until the transaction ends. Raise INVALID_REQUEST if there is no such one."""
    dataset = session.scalar(_locked_dataset(), {"id": dataset_id, "tenant": tenant})
    if dataset is None:
        flaw = Flaw(field, "must be the id of a dataset", dataset_id, "Upload one with POST /datasets and use its id.")
        raise ProblemError(
            Code.INVALID_REQUEST, f"There is no dataset {dataset_id!r}. List yours with GET /datasets.", (flaw,)
        )
    return dataset


def _require_result(session: Session, tenant: str, model: str) -> None:
    """Prevent the deletion of a model that is the result of a job. Raise MODEL_NOT_FOUND if it was deleted already."""
    if results.is_result(model) and results.find(session, tenant, model, keep=True) is None:
        way_out = "Give the id of a job that has a checkpoint. GET /models lists them."
        flaw = Flaw("model", "must be a job with a checkpoint", repr(model), way_out)
        raise ProblemError(Code.MODEL_NOT_FOUND, f"The checkpoint of {model} was deleted. {way_out}", (flaw,))


def _unusable(field: str, rule: str, value: str, way_out: str) -> ProblemError:
    flaw = Flaw(field, rule, value, way_out)
    return ProblemError(Code.INVALID_REQUEST, f"{field} {rule}; it has {value}. {way_out}", (flaw,))


@cache
def _locked_dataset() -> Select[Dataset]:
    owned = (Dataset.id == bindparam("id"), Dataset.tenant == bindparam("tenant"), Dataset.deleted_at.is_(None))
    # A transaction that deletes the dataset waits for this one, and then sees the job.
    return select(Dataset).where(*owned).with_for_update(read=True, key_share=True)
