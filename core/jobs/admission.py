"""How a request becomes a job: everything that can be refused is refused before there is a row.

No transaction is open while the hub is asked about a model.
"""

from sqlalchemy.orm import Session, sessionmaker

from core.access import audit
from core.access.audit import Caller
from core.estimate.estimates import estimate
from core.jobs import fairness, jobs
from core.models.resolver import ModelResolver
from core.settings import Settings
from core.specs import JobSpec
from core.tables import Job


def admit(
    door: ModelResolver,
    sessions: sessionmaker[Session],
    caller: Caller,
    spec: JobSpec,
    *,
    idempotency_key: str | None,
    action: str,
    settings: Settings,
) -> tuple[Job, bool]:
    """The new job and True, or the one that the same key and body made before and False. `action` is for the audit.

    A hub model's revision becomes the commit it stands for now, so that a branch that moves changes no job.
    ProblemError where the dataset, the model or the key is refused, or where the tenant has as much as it may.
    A job that is to wait for its start is told what it will take.
    """
    body = spec.fingerprint()
    if idempotency_key is not None:
        with sessions.begin() as session:
            if former := jobs.find_by_idempotency_key(session, caller.tenant, idempotency_key, body):
                return former, False
    source = door.find(caller.tenant, spec.model, spec.revision)
    anatomy = None if spec.auto_start else door.dimensions(caller.tenant, source)
    pinned = spec.model_copy(update={"revision": source.revision})
    with sessions.begin() as session:
        fairness.require_waiting_quota(session, caller, settings)
        fairness.require_storage_quota(session, caller.tenant, settings.tenant_bytes)
        told = estimate(session, anatomy, pinned, settings) if anatomy else None
        job, new = jobs.create(
            session,
            caller.tenant,
            pinned,
            idempotency_key,
            body,
            key_id=caller.key_id,
            request_id=caller.request_id,
            estimate=told,
        )
        if new:
            audit.record(session, caller, action, job.id)
        return job, new
