"""Jobs as their tenant sees them: made, found, listed.

What may be asked of them is in `core.jobs.actions`, what a worker does to them in `core.jobs.attempts`.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache

from sqlalchemy import BindParameter, ColumnElement, Double, Select, and_, bindparam, cast, func, or_, select, true
from sqlalchemy.orm import Session, aliased

from core import ids
from core.access import keys
from core.errors import Code, Flaw, ProblemError
from core.infra import tracing
from core.jobs.transitions import hold, record_event
from core.specs import SPEC_VERSION, JobSpec
from core.states import Reason, Status, Transition
from core.tables import Dataset, IdempotencyKey, Job, JobLabel, Json

HEADER = "Idempotency-Key"
POSITIONS = 1000
"""Places in the queue are counted up to here, so that a long queue costs no more than a short one."""


class Order(StrEnum):
    """Which jobs a list begins with; equal ones are the newest first."""

    NEWEST = "newest"
    OLDEST = "oldest"
    SPARSEST = "sparsest"
    BEST = "best"
    """By the perplexity of the repaired model; those that have none come last."""


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
) -> tuple[Job, bool]:
    """A new job and True; or the job that the same key and body made before, and False.

    It is queued, or paused where it is to wait for its start. INVALID_REQUEST when the dataset is none of the tenant's;
    else the errors of `earlier`.
    """
    if idempotency_key is not None and (
        former := find_by_idempotency_key(session, tenant, idempotency_key, body_sha256)
    ):
        return former, False
    require_dataset(session, tenant, spec.dataset)
    job = Job(
        id=ids.new("job"),
        tenant=tenant,
        key_id=key_id,
        request_id=request_id,
        traceparent=tracing.current_traceparent(),
        dataset_id=spec.dataset,
        spec=spec.model_dump(mode="json"),
        spec_version=SPEC_VERSION,
        priority=spec.priority,
        status=Status.QUEUED,
        estimate=estimate,
        # The creator sends a hint after the commit; the sweep need not send another one at once.
        notified_at=func.now(),
    )
    session.add(job)
    session.add_all(JobLabel(tenant=tenant, pair=pair, job_id=job.id) for pair in _pairs(spec.metadata))
    session.flush()
    record_event(session, job.id, job.attempt, f"job.{Transition.CREATED}", {})
    if not spec.auto_start:
        hold(session, job.id, Reason.NOT_STARTED, f"auto_start is false; POST /jobs/{job.id}/start starts the job.")
        session.refresh(job)
    if idempotency_key is not None:
        session.add(IdempotencyKey(tenant=tenant, key=idempotency_key, body_sha256=body_sha256, job_id=job.id))
    return job, True


def find_by_idempotency_key(session: Session, tenant: str, key: str, body_sha256: str) -> Job | None:
    """The job that this key made before, or None. Holds the key until the transaction ends.

    IDEMPOTENCY_CONFLICT when the key came with another body, IDEMPOTENCY_IN_FLIGHT when another request holds it.
    """
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(f"{tenant}\n{key}", 0))
    if not session.scalar(select(lock)):
        flaw = Flaw(HEADER, "is used by no other request now", repr(key), "Send the same request again in a second.")
        detail = f"A request with the Idempotency-Key {key!r} is still being served. Try again."
        raise ProblemError(Code.IDEMPOTENCY_IN_FLIGHT, detail, (flaw,))
    former = session.get(IdempotencyKey, (tenant, key))
    if former is None:
        return None
    if former.body_sha256 != body_sha256:
        flaw = Flaw(HEADER, "comes with one and the same body", repr(key), "Use a new key for a new job.")
        detail = f"The Idempotency-Key {key!r} made {former.job_id} from another body. Use a new key for a new job."
        raise ProblemError(Code.IDEMPOTENCY_CONFLICT, detail, (flaw,))
    return session.get_one(Job, former.job_id)


def get(session: Session, tenant: str, job_id: str) -> Job:
    """The tenant's job, or NOT_FOUND."""
    query = select(Job).where(Job.id == job_id, Job.tenant == tenant)
    job = session.scalar(query) if ids.is_id("job", job_id) else None
    if job is None:
        raise ProblemError(Code.NOT_FOUND, f"There is no job {job_id!r}. GET /jobs lists yours.")
    return job


def page(
    session: Session,
    tenant: str,
    *,
    status: Status | None = None,
    model: str | None = None,
    metadata: Mapping[str, str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    order: Order = Order.NEWEST,
    after: str | None = None,
    limit: int,
) -> tuple[Sequence[Job], bool]:
    """Up to `limit` jobs in this order, those behind the job `after`; and whether there are more.

    `since` and `until` are of their making; ids sort by it.
    """
    query = _ordered(select(Job).where(Job.tenant == tenant), tenant, order, after).limit(limit + 1)
    if status is not None:
        query = query.where(Job.status == status)
    if model is not None:
        query = query.where(Job.spec["model"].astext == model)
    for pair in _pairs(metadata or {}):
        label = aliased(JobLabel)
        query = query.join(label, (label.job_id == Job.id) & (label.tenant == tenant) & (label.pair == pair))
    if since is not None:
        query = query.where(Job.id >= ids.floor("job", since))
    if until is not None:
        query = query.where(Job.id < ids.floor("job", until))
    rows = session.scalars(query).all()
    return rows[:limit], len(rows) > limit


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


def _pairs(metadata: Mapping[str, str]) -> list[str]:
    return [keys.digest(f"{name}\0{value}") for name, value in metadata.items()]


def counts(session: Session, tenant: str) -> dict[Status, int]:
    """How many jobs of each status there are; `POSITIONS` stands for that many or more."""
    return {status: _count(session, tenant, status) for status in Status}


def _count(session: Session, tenant: str, status: Status) -> int:
    some = select(Job.id).where(Job.tenant == tenant, Job.status == status).limit(POSITIONS)
    return session.scalar(select(func.count()).select_from(some.subquery())) or 0


def models(session: Session, tenant: str) -> list[str]:
    """The models of the tenant's newest jobs, each once, the newest first."""
    newest = select(Job.id, Job.spec["model"].astext.label("model")).where(Job.tenant == tenant)
    some = newest.order_by(Job.id.desc()).limit(POSITIONS).subquery()
    query = select(some.c.model).group_by(some.c.model).order_by(func.max(some.c.id).desc())
    return list(session.scalars(query))


def first_in_queue(session: Session, tenant: str, *, limit: int) -> Sequence[Job]:
    """The tenant's queued jobs that come first, in the order of the queue."""
    queued = select(Job).where(Job.tenant == tenant, Job.status == Status.QUEUED)
    return session.scalars(queued.order_by(Job.priority.desc(), Job.id).limit(limit)).all()


def position(session: Session, job: Job) -> int | None:
    """Place in the queue, from 1; `POSITIONS` stands for that many or more. None when the job is not queued."""
    if job.status != Status.QUEUED:
        return None
    return 1 + (session.scalar(_ahead(), {"id": job.id, "priority": job.priority}) or 0)


@cache
def _ahead() -> Select[int]:
    priority: BindParameter[int] = bindparam("priority")
    before = or_(Job.priority > priority, and_(Job.priority == priority, Job.id < bindparam("id")))
    some = select(Job.id).where(Job.status == Status.QUEUED, before).limit(POSITIONS - 1)
    return select(func.count()).select_from(some.subquery())


def require_dataset(session: Session, tenant: str, dataset_id: str) -> None:
    """INVALID_REQUEST when the tenant has no such dataset."""
    if session.scalar(_held_dataset(), {"id": dataset_id, "tenant": tenant}) is None:
        flaw = Flaw(
            "dataset", "names an uploaded dataset", dataset_id, "Upload one with POST /datasets and give its id."
        )
        raise ProblemError(Code.INVALID_REQUEST, f"There is no dataset {dataset_id!r}.", (flaw,))


@cache
def _held_dataset() -> Select[str]:
    mine = (Dataset.id == bindparam("id"), Dataset.tenant == bindparam("tenant"), Dataset.deleted_at.is_(None))
    # Whoever would delete it waits for this transaction, and sees the job then.
    return select(Dataset.id).where(*mine).with_for_update(read=True, key_share=True)
