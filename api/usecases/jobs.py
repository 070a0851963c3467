"""Create a job, estimate it, apply an action to it, delete it, and read it with its place in the queue."""

from collections.abc import Callable, Mapping

from sqlalchemy.orm import Session

from api.deps import Services
from api.schemas.estimates import EstimateSpec, EstimateView
from api.schemas.jobs import JobDetail
from core.access import audit
from core.access.audit import Caller
from core.estimate import estimates
from core.infra import queue
from core.jobs import actions, fairness, jobs
from core.jobs.admission import admit, fitted
from core.specs import JobSpec
from core.states import Status
from core.tables import Job

ACTIONS: Mapping[str, Callable[[Session, str, str], Job]] = {
    "cancel": actions.cancel,
    "pause": actions.pause,
    "resume": actions.resume,
    "stop": actions.stop,
    "start": actions.start,
}


def create(
    services: Services,
    caller: Caller,
    spec: JobSpec,
    *,
    idempotency_key: str | None,
    operation: str = "create_job",
) -> JobDetail:
    """Check and create a job, and notify the workers. Raises the errors of `core.jobs.admission.admit`.

    If the same key and body have created a job before, that job is returned. `operation` is the name of the change in
    the audit log.
    """
    job, new = admit(
        services.models,
        services.sessions,
        caller,
        spec,
        idempotency_key=idempotency_key,
        action=operation,
        settings=services.settings,
    )
    if new and job.status == Status.QUEUED:
        queue.notify(services.broker)
    with services.sessions.begin() as session:
        return detail(services, session, job)


def estimate(services: Services, caller: Caller, spec: EstimateSpec) -> EstimateView:
    """Estimate a job's memory, time and storage, and which workers can run it. No weights are read.

    Raises ProblemError if the model or the settings are rejected, as when the job is created.
    """
    source = services.models.find(caller.tenant, spec.model, spec.revision)
    dimensions = services.models.dimensions(caller.tenant, source)
    fitting = fitted(spec, dimensions, source)
    with services.sessions.begin() as session:
        return EstimateView.model_validate(estimates.estimate(session, dimensions, fitting, services.settings))


def act(services: Services, caller: Caller, job_id: str, action: str) -> JobDetail:
    """Apply one of `ACTIONS` to a job. If the job is queued afterwards, notify the workers."""
    with services.sessions.begin() as session:
        job = ACTIONS[action](session, caller.tenant, job_id)
        audit.record(session, caller, f"{action}_job", job.id)
        view = detail(services, session, job)
    if view.status == Status.QUEUED:
        queue.notify(services.broker)
    return view


def delete(services: Services, caller: Caller, job_id: str) -> JobDetail:
    """Delete a job that has ended, and return it as it was. Raises the errors of `core.jobs.actions.delete`."""
    with services.sessions.begin() as session:
        job = actions.delete(session, caller.tenant, job_id)
        audit.record(session, caller, "delete_job", job.id)
        return detail(services, session, job)


def get(services: Services, caller: Caller, job_id: str) -> JobDetail:
    """Return one job of the caller's tenant. Raises NOT_FOUND if the tenant has no such job."""
    with services.sessions.begin() as session:
        return detail(services, session, jobs.get(session, caller.tenant, job_id))


def detail(services: Services, session: Session, job: Job) -> JobDetail:
    """Return the full view of a job, with its place in the queue and the reason why it waits."""
    reason = fairness.waiting_reason(session, job, services.settings)
    return JobDetail.of(job, queue_position=jobs.position(session, job), reason=reason, estimate=job.estimate)
