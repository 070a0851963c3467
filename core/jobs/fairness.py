"""The order of the queue, and the limits per tenant and per API key.

Fairness between tenants comes first: the tenant with the fewest running jobs per weight is served. Ties are resolved by
the turn of each tenant (`core.fair_queueing`). Priority and age order the jobs of one tenant. This module also says why
a job does not run.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import CTE, Select, bindparam, func, literal, or_, select, true
from sqlalchemy.orm import Session

from core import fair_queueing, workers
from core.access.audit import Caller
from core.capability import Capability, can_run
from core.errors import Code, ProblemError
from core.fair_queueing import Queue
from core.infra.database import Lock, lock
from core.settings import Settings
from core.states import ImportState, Status
from core.tables import Dataset, Holding, Import, Job, Json

CONSIDERED = 500
"""Number of the first queued jobs of a tenant among which a worker looks for one that it can run."""
CONCURRENT = 200
"""If a tenant is within this number of jobs of a limit, requests that create a job take a lock.

The number is larger than the number of requests that all API processes handle at the same time. So requests without
the lock cannot exceed the limit together.
"""


class Waiting(NamedTuple):
    """A tenant with queued jobs."""

    tenant: str
    first: str
    """Id of its first queued job."""
    running: int
    """Number of its running jobs."""


def next_job(
    session: Session,
    capability: Capability,
    *,
    tenant_limit: int,
    key_limit: int,
    weights: Mapping[str, float],
) -> tuple[Job, Dataset] | None:
    """Lock and return the next job that a worker with this capability can run, and take the turn of its tenant.

    Returns None if there is no such job. `tenant_limit` and `key_limit` are the maximum number of running jobs per
    tenant and per key. The value 0 means no limit. `weights` are the weights of tenants; others have the weight 1. Jobs
    that newer software accepted, or whose row is locked, are skipped. Other claims wait until this transaction ends.
    """
    lock(session, Lock.JOB_CLAIM)
    waiting = [each for each in _waiting(session) if not tenant_limit or each.running < tenant_limit]
    starts = fair_queueing.starts(session, Queue.JOBS, [each.tenant for each in waiting])
    query = _first_job(capability, key_limit)
    for each in sorted(
        waiting, key=lambda each: (each.running / weights.get(each.tenant, 1.0), starts[each.tenant], each.first)
    ):
        if row := session.execute(query, {"tenant": each.tenant}).first():
            fair_queueing.take(session, Queue.JOBS, each.tenant, starts[each.tenant], weights.get(each.tenant, 1.0))
            return row[0], row[1]
    return None


def _waiting(session: Session) -> Sequence[Waiting]:
    return [Waiting(*row) for row in session.execute(_waiting_query())]


@cache
def _waiting_query() -> Select[str, str, int]:
    running = (
        select(Job.tenant, func.count().label("jobs"))
        .where(Job.status == Status.RUNNING)
        .group_by(Job.tenant)
        .subquery()
    )
    waiting = waiting_tenants()
    query = select(waiting.c.tenant, waiting.c.id, func.coalesce(running.c.jobs, 0))
    return query.outerjoin(running, running.c.tenant == waiting.c.tenant)


def waiting_tenants() -> CTE:
    """Return a table with one row per tenant with queued jobs: `tenant`, and `id`, which is the id of its first job.

    It jumps from tenant to tenant in the index `jobs_in_turn`. So it does not read all queued jobs.
    """
    order = (Job.tenant, Job.priority.desc(), Job.id)
    queued = select(Job.tenant, Job.id).where(Job.status == Status.QUEUED)
    first = queued.order_by(*order).limit(1).subquery()
    tenants = select(first.c.tenant, first.c.id).cte("waiting", recursive=True)
    following = queued.where(Job.tenant > tenants.c.tenant).order_by(*order).limit(1).correlate(tenants).lateral()
    return tenants.union_all(select(following.c.tenant, following.c.id).select_from(tenants.join(following, true())))


def _first_job(capability: Capability, key_limit: int) -> Select[Job, Dataset]:
    """Return the query for the first job of the tenant in the parameter `tenant` that can run. It locks the job's row.

    The query reads only the first `CONSIDERED` queued jobs of keys below their limit, because other claims wait while
    it reads jobs that this worker cannot run.
    """
    order = (Job.priority.desc(), Job.id)
    queued = select(Job.id, Job.priority).where(Job.status == Status.QUEUED, Job.tenant == bindparam("tenant"))
    if key_limit:
        running = select(Job.key_id).where(Job.status == Status.RUNNING, Job.key_id.is_not(None)).group_by(Job.key_id)
        full = running.having(func.count() >= key_limit)
        queued = queued.where(or_(Job.key_id.is_(None), Job.key_id.not_in(full)))
    first = queued.order_by(*order).limit(CONSIDERED).subquery()
    return (
        select(Job, Dataset)
        .select_from(first)
        .join(Job, Job.id == first.c.id)
        .join(Dataset, Dataset.id == Job.dataset_id)
        .where(Job.status == Status.QUEUED, can_run(capability))
        .order_by(first.c.priority.desc(), first.c.id)  # the order of `first`, so its rows are read one by one
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )


def require_waiting_quota(session: Session, caller: Caller, settings: Settings) -> None:
    """Raise LIMIT_REACHED if the tenant or the key already has the maximum number of waiting jobs.

    Near a limit, other transactions that create a job of the tenant wait until this one ends. So concurrent requests
    cannot exceed the limit together.
    """
    for whose, key_id, limit in (
        ("your jobs", None, settings.tenant_waiting),
        ("this key's jobs", caller.key_id, settings.key_waiting),
    ):
        whose_jobs = (caller.tenant, key_id, (Status.QUEUED, Status.PAUSED))
        if not limit or (limit > CONCURRENT and not _has(session, limit - CONCURRENT, *whose_jobs)):
            continue
        lock(session, f"waiting of {caller.tenant}")
        if _has(session, limit, *whose_jobs):
            raise ProblemError(
                Code.LIMIT_REACHED,
                f"At most {limit} of {whose} can wait, and that many wait now. Wait until one of them runs, or cancel"
                " one.",
            )


def require_storage_quota(
    session: Session, tenant: str, limit: int, *, sha256: str = "", import_id: str = "", more: int = 1
) -> None:
    """Raise LIMIT_REACHED if the tenant would store more than `limit` bytes. A limit of 0 means no limit.

    `more` is the number of bytes to add, and `sha256` is the hash of their content. Content with this hash that the
    tenant already stores is not counted twice. `import_id` is the import that the bytes come from, if any. If there is
    a limit, other transactions that store data for the tenant wait until this transaction ends.
    """
    if not limit:
        return
    lock(session, f"bytes of {tenant}")
    used = sum(stored_bytes(session, tenant, without=sha256, without_import=import_id))
    if used + more > limit:
        raise ProblemError(
            Code.LIMIT_REACHED,
            f"Your datasets, checkpoints and unfinished imports may use at most {limit:,} bytes; they use {used:,}, and"
            f" this needs at least {more:,} more. Delete a dataset or an import, wait until something expires, or ask"
            " the operator for a higher limit.",
        )


class StoredBytes(NamedTuple):
    """Bytes that a tenant stores. Datasets with equal content count once."""

    datasets: int
    checkpoints: int
    imports: int
    """Sizes of the files of unfinished imports, as announced. The size of a source is unknown and not counted."""


def stored_bytes(session: Session, tenant: str, *, without: str = "", without_import: str = "") -> StoredBytes:
    """Return the bytes that the tenant stores.

    The dataset with the hash `without` and the import `without_import` are not counted.
    """
    owned = (Dataset.tenant == tenant, Dataset.deleted_at.is_(None), Dataset.sha256 != without)
    contents = select(Dataset.sha256, Dataset.bytes).where(*owned).distinct().subquery()
    datasets = select(func.sum(contents.c.bytes))
    checkpoints = select(Holding.checkpoints).where(Holding.tenant == tenant)
    unfinished = Import.state.in_((ImportState.RECEIVING, ImportState.CHECKING))
    imports = select(func.sum(Import.bytes)).where(Import.tenant == tenant, unfinished, Import.id != without_import)
    return StoredBytes(*(int(session.scalar(query) or 0) for query in (datasets, checkpoints, imports)))


def waiting_reason(session: Session, job: Job, settings: Settings) -> Json | None:
    """Return why the job does not run, or None if it is neither paused nor queued.

    The reason of a paused job is in its row. The reason of a queued job is computed from the queue.
    """
    if job.status != Status.QUEUED:
        return job.reason
    limits: list[tuple[str, str, str | None, int]] = [("tenant_limit", "your jobs", None, settings.tenant_running)]
    if job.key_id is not None:
        limits.append(("key_limit", "the jobs of its key", job.key_id, settings.key_running))
    for code, whose, key_id, limit in limits:
        if limit and _has(session, limit, job.tenant, key_id, (Status.RUNNING,)):
            return _reason(code, f"At most {limit} of {whose} can run, and that many run now.")
    alive, capable = workers.count_capable(session, job, settings.sweep_seconds)
    if capable:
        return _reason("in_turn", "It waits for a free worker and for the jobs before it.")
    if not alive:
        return _reason("no_worker", "No worker is running.")
    return _reason("no_worker", f"No worker that runs now can take this job. The job needs {_needs(job)}.")


def _needs(job: Job) -> str:
    templates = {
        "device": "a device of the kind {}",
        "memory": "{:,} bytes of memory on the device",
        "disk": "{:,} bytes free on the disk",
    }
    needs = [template.format(job.needs[name]) for name, template in templates.items() if name in job.needs]
    if (devices := job.spec.get("devices", 1)) > 1:
        needs.append(f"a worker with {devices} devices")
    return " and ".join([*needs, "a software version that supports its request"])


def _has(session: Session, number: int, tenant: str, key_id: str | None, statuses: Sequence[Status]) -> bool:
    """Return whether the tenant has at least `number` jobs with one of the statuses. Reads no more rows than that.

    If `key_id` is given, only the jobs of this key count.
    """
    values = {"tenant": tenant, "statuses": statuses, "others": number - 1}
    if key_id is not None:
        values["key_id"] = key_id
    return session.scalar(_after_others(by_key=key_id is not None), values) is not None


@cache
def _after_others(*, by_key: bool) -> Select[int]:
    """Return the query that skips `others` jobs of one tenant (and key) and returns 1 if there is one more."""
    query = select(literal(1)).where(
        Job.tenant == bindparam("tenant"), Job.status.in_(bindparam("statuses", expanding=True))
    )
    if by_key:
        query = query.where(Job.key_id == bindparam("key_id"))
    return query.offset(bindparam("others")).limit(1)


def _reason(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}
