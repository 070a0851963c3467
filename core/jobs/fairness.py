"""The order of the queue, and the limits per tenant and per API key.

Jobs run by priority, then by the fewest running jobs of their tenant, then by age. This module also says why a job
does not run.
"""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, aliased

from core import workers
from core.access.audit import Caller
from core.capability import Capability, can_run
from core.errors import Code, ProblemError
from core.settings import Settings
from core.states import Status
from core.tables import Dataset, Holding, Job, Json

CLAIM_LOCK = 0x5EF72
"""Advisory lock for a claim that counts running jobs. The number must differ from those of all other advisory locks."""


def next_job(session: Session, capability: Capability, tenant_limit: int, key_limit: int) -> Select[Job, Dataset]:
    """Return the query for the next job that a worker with this capability can run. It locks the job's row.

    `tenant_limit` and `key_limit` are the maximum number of running jobs per tenant and per key. The value 0 means no
    limit. The query skips jobs that newer software accepted.
    """
    running = (
        select(Job.tenant, func.count().label("jobs"))
        .where(Job.status == Status.RUNNING)
        .group_by(Job.tenant)
        .subquery()
    )
    running_jobs = func.coalesce(running.c.jobs, 0)
    query = (
        select(Job, Dataset)
        .join(Dataset, Dataset.id == Job.dataset_id)
        .outerjoin(running, running.c.tenant == Job.tenant)
        .where(Job.status == Status.QUEUED, can_run(capability))
        .order_by(Job.priority.desc(), running_jobs, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    if tenant_limit or key_limit:
        session.execute(select(func.pg_advisory_xact_lock(CLAIM_LOCK)))
    if tenant_limit:
        query = query.where(running_jobs < tenant_limit)
    if key_limit:
        other = aliased(Job)
        same_key = (other.status == Status.RUNNING, other.key_id == Job.key_id)
        query = query.where(select(func.count()).where(*same_key).correlate(Job).scalar_subquery() < key_limit)
    return query


def require_waiting_quota(session: Session, caller: Caller, settings: Settings) -> None:
    """Raise LIMIT_REACHED if the tenant or the key already has the maximum number of waiting jobs."""
    for whose, owned, limit in (
        ("your jobs", Job.tenant == caller.tenant, settings.tenant_waiting),
        ("this key's jobs", Job.key_id == caller.key_id, settings.key_waiting),
    ):
        if limit and (waiting := _count(session, owned, Status.QUEUED, Status.PAUSED)) >= limit:
            raise ProblemError(
                Code.LIMIT_REACHED,
                f"At most {limit} of {whose} can wait; {waiting} wait now. Wait until one of them runs, or cancel one.",
            )


def require_storage_quota(session: Session, tenant: str, limit: int, *, sha256: str = "", more: int = 1) -> None:
    """Raise LIMIT_REACHED if the tenant would store more than `limit` bytes. A limit of 0 means no limit.

    `more` is the number of bytes to add, and `sha256` is the hash of their content. Content with this hash that the
    tenant already stores is not counted twice. If there is a limit, other transactions that store data for the tenant
    wait until this transaction ends.
    """
    if not limit:
        return
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"bytes of {tenant}", 0))))
    if (used := sum(stored_bytes(session, tenant, without=sha256))) + more > limit:
        raise ProblemError(
            Code.LIMIT_REACHED,
            f"Your datasets and checkpoints may use at most {limit:,} bytes; they use {used:,}, and this needs at least"
            f" {more:,} more. Delete a dataset, wait until something expires, or ask the operator for a higher limit.",
        )


class StoredBytes(NamedTuple):
    """Bytes that a tenant stores. Datasets with equal content count once."""

    datasets: int
    checkpoints: int


def stored_bytes(session: Session, tenant: str, *, without: str = "") -> StoredBytes:
    """Return the bytes that the tenant stores. The dataset with the hash `without` is not counted."""
    owned = (Dataset.tenant == tenant, Dataset.deleted_at.is_(None), Dataset.sha256 != without)
    contents = select(Dataset.sha256, Dataset.bytes).where(*owned).distinct().subquery()
    datasets = select(func.sum(contents.c.bytes))
    checkpoints = select(Holding.checkpoints).where(Holding.tenant == tenant)
    return StoredBytes(*(int(session.scalar(query) or 0) for query in (datasets, checkpoints)))


def waiting_reason(session: Session, job: Job, settings: Settings) -> Json | None:
    """Return why the job does not run, or None if it is neither paused nor queued.

    The reason of a paused job is in its row. The reason of a queued job is computed from the queue.
    """
    if job.status != Status.QUEUED:
        return job.reason
    for code, whose, owned, limit in (
        ("tenant_limit", "your jobs", Job.tenant == job.tenant, settings.tenant_running),
        ("key_limit", "the jobs of its key", Job.key_id == job.key_id, settings.key_running),
    ):
        if limit and (running := _count(session, owned, Status.RUNNING)) >= limit:
            return _reason(code, f"At most {limit} of {whose} can run; {running} run now.")
    alive, capable = workers.count_capable(session, job, settings.sweep_seconds)
    if capable:
        return _reason("in_turn", "It waits for a free worker and for the jobs before it.")
    if not alive:
        return _reason("no_worker", "No worker is running.")
    return _reason("no_worker", f"No running worker can take it: it needs {_needs(job)}.")


def _needs(job: Job) -> str:
    templates = {
        "device": "a device of the kind {}",
        "memory": "{:,} bytes of memory on the device",
        "disk": "{:,} bytes free on the disk",
    }
    needs = [template.format(job.needs[name]) for name, template in templates.items() if name in job.needs]
    return " and ".join([*needs, "software as new as its request"])


def _count(session: Session, owned: ColumnElement[bool], *statuses: Status) -> int:
    return session.scalar(select(func.count()).where(owned, Job.status.in_(statuses))) or 0


def _reason(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}
