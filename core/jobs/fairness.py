"""Whose turn it is: by priority, then by whose tenant runs the fewest jobs, then by age; and the limits of each."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session, aliased

from core import workers
from core.access.audit import Caller
from core.capability import Capability, fits
from core.errors import Code, ProblemError
from core.settings import Settings
from core.states import Status
from core.tables import Dataset, Holding, Job, Json

CLAIM_LOCK = 0x5EF72
"""Held while a claim counts what runs, where that is limited; any number that no other advisory lock uses."""


def next_job(session: Session, has: Capability, tenant_limit: int, key_limit: int) -> Select[Job, Dataset]:
    """The query of the job that is next for a worker who has this, its row locked.

    No tenant and no key gets more running jobs than its limit; 0: any. What newer software took is left to a newer
    worker.
    """
    running = (
        select(Job.tenant, func.count().label("jobs"))
        .where(Job.status == Status.RUNNING)
        .group_by(Job.tenant)
        .subquery()
    )
    have = func.coalesce(running.c.jobs, 0)
    query = (
        select(Job, Dataset)
        .join(Dataset, Dataset.id == Job.dataset_id)
        .outerjoin(running, running.c.tenant == Job.tenant)
        .where(Job.status == Status.QUEUED, fits(has))
        .order_by(Job.priority.desc(), have, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    if tenant_limit or key_limit:
        session.execute(select(func.pg_advisory_xact_lock(CLAIM_LOCK)))
    if tenant_limit:
        query = query.where(have < tenant_limit)
    if key_limit:
        other = aliased(Job)
        same = (other.status == Status.RUNNING, other.key_id == Job.key_id)
        query = query.where(select(func.count()).where(*same).correlate(Job).scalar_subquery() < key_limit)
    return query


def require_waiting_quota(session: Session, caller: Caller, settings: Settings) -> None:
    """LIMIT_REACHED when as many jobs of the tenant, or of the key, wait already as may."""
    for whose, mine, limit in (
        ("your jobs", Job.tenant == caller.tenant, settings.tenant_waiting),
        ("this key's jobs", Job.key_id == caller.key_id, settings.key_waiting),
    ):
        if limit and (waiting := _count(session, mine, Status.QUEUED, Status.PAUSED)) >= limit:
            way_out = "Wait until one of them runs, or cancel one."
            raise ProblemError(Code.LIMIT_REACHED, f"{waiting} of {whose} wait; {limit} may. {way_out}")


def require_storage_quota(session: Session, tenant: str, limit: int, *, sha256: str = "", more: int = 1) -> None:
    """LIMIT_REACHED where the tenant may not store so many `more` bytes, those of the content with this hash.

    Until the transaction ends nobody else stores anything for the tenant, where that is limited.
    """
    if not limit:
        return
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"bytes of {tenant}", 0))))
    if (used := sum(stored_bytes(session, tenant, besides=sha256))) + more > limit:
        way_out = "Delete a dataset, wait until something expires, or have the operator raise the limit."
        detail = (
            f"Your datasets and checkpoints take up {used:,} of {limit:,} bytes; this takes at least {more:,} more."
        )
        raise ProblemError(Code.LIMIT_REACHED, f"{detail} {way_out}")


class StoredBytes(NamedTuple):
    """Bytes that a tenant stores, equal datasets once."""

    datasets: int
    checkpoints: int


def stored_bytes(session: Session, tenant: str, *, besides: str = "") -> StoredBytes:
    """What the tenant stores, the dataset with the hash `besides` left out."""
    mine = (Dataset.tenant == tenant, Dataset.deleted_at.is_(None), Dataset.sha256 != besides)
    each = select(Dataset.sha256, Dataset.bytes).where(*mine).distinct().subquery()
    datasets = select(func.sum(each.c.bytes))
    checkpoints = select(Holding.checkpoints).where(Holding.tenant == tenant)
    return StoredBytes(*(int(session.scalar(query) or 0) for query in (datasets, checkpoints)))


def waiting_reason(session: Session, job: Job, settings: Settings) -> Json | None:
    """Why the job does not run: as its row says while it is paused, as the queue says while it is queued."""
    if job.status != Status.QUEUED:
        return job.reason
    for code, whose, mine, limit in (
        ("tenant_limit", "your jobs", Job.tenant == job.tenant, settings.tenant_running),
        ("key_limit", "the jobs of its key", Job.key_id == job.key_id, settings.key_running),
    ):
        if limit and (running := _count(session, mine, Status.RUNNING)) >= limit:
            return _told(code, f"{running} of {whose} run, and no more than {limit} may.")
    living, able = workers.count_able(session, job, settings.sweep_seconds)
    if able:
        return _told("in_turn", "It waits for a worker, and for the jobs before it.")
    if not living:
        return _told("no_worker", "No worker runs now.")
    return _told("no_worker", f"No worker that runs now can take it: it needs {_needs(job)}.")


def _needs(job: Job) -> str:
    told = {
        "device": "a device of the kind {}",
        "memory": "{:,} bytes of memory on the device",
        "disk": "{:,} bytes free on the disk",
    }
    needs = [told[name].format(job.needs[name]) for name in told if name in job.needs]
    return " and ".join([*needs, "software as new as its request"])


def _count(session: Session, mine: ColumnElement[bool], *statuses: Status) -> int:
    return session.scalar(select(func.count()).where(mine, Job.status.in_(statuses))) or 0


def _told(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}
