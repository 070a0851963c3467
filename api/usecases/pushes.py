"""Push the result of a job into a repository of the model hub."""

from api.deps import Services
from api.schemas.pushes import PushRequest, PushView
from api.usecases.audited import audited
from core.access.audit import Caller
from core.jobs import jobs, pushes


def push(services: Services, caller: Caller, job_id: str, target: PushRequest) -> PushView:
    """Request a push. A worker does it.

    Raises the errors of `request` and `require_branch` in `core.jobs.pushes`, and of `require_writable`.
    """
    pushes.require_branch(target.revision, "revision")
    with services.sessions.begin() as session:
        job = jobs.get(session, caller.tenant, job_id)
        session.expunge(job)
    services.models.require_writable(caller.tenant, target.repository, "repository")
    return audited(services, caller, "push_job", PushView.of, lambda session, _: pushes.request(session, job, target))


def list_all(services: Services, caller: Caller, job_id: str) -> list[PushView]:
    """Return the pushes of a job, the newest request first. Raises NOT_FOUND if the tenant has no such job."""
    with services.sessions.begin() as session:
        job = jobs.get(session, caller.tenant, job_id)
        return [PushView.of(row) for row in pushes.list_all(session, job.id)]
