"""Pushes: results of jobs that are copied into repositories of the model hub, with the hub token of the tenant.

A push is a row. It is written in the transaction that publishes the result, or by a request for a finished job. A
worker claims the row for `LEASE`, copies the files, and records the result. If it dies before that, another worker
claims the row and tries again. A push that fails changes neither the job's status nor its result.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from core import fair_queueing, ids
from core.errors import Code, Flaw, ProblemError
from core.fair_queueing import Queue
from core.infra.database import Lock
from core.jobs.transitions import record_event
from core.spec_parts import PushSpec
from core.states import STATUS_EVENT_PREFIX, PushState, Status, Transition
from core.tables import Checkpoint, Job, Json, Push
from core.webhooks import JITTER, RETRY_DELAYS

LEASE = timedelta(seconds=60)
MAX_TRIES = len(RETRY_DELAYS) + 1
"""Maximum number of tries. All tries together take about two days, as for webhook messages."""
AGAIN = "Push again with POST /jobs/{}/push."
"""Way out after the last try."""
MAX_TARGETS = 100
"""Maximum number of branches into which the result of one job is pushed."""


@dataclass(frozen=True, slots=True)
class ClaimedPush:
    """A push that was claimed, with everything that is needed to do it."""

    id: str
    number: int
    """Number of this try, from 1. The result is recorded only if no newer try exists."""
    requested_at: datetime
    """Time of the request. A new request numbers its tries from 1 again."""
    tenant: str
    job_id: str
    repository: str
    revision: str
    private: bool
    prefix: str
    files: list[Json] | None
    """The files of the checkpoint, whose keys begin with `prefix`. None if the checkpoint was deleted."""


def require_branch(revision: str, param: str) -> None:
    """Raise INVALID_REQUEST for the parameter `param` if Git refuses a branch of this name.

    `PushSpec` does not have this rule, because stored requests must stay readable.
    """
    parts = revision.split("/")
    wrong = any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
    if wrong or ".." in revision or revision.endswith("."):
        rule = "must be a name that Git accepts for a branch"
        way_out = (
            "Use a name without `..`, without a dot at its end, and whose parts between slashes are not empty, do not"
            " begin with a dot and do not end with `.lock`."
        )
        flaw = Flaw(param, rule, repr(revision), way_out)
        raise ProblemError(Code.INVALID_REQUEST, f"{param} {rule}; it is {revision!r}. {way_out}", (flaw,))


def add_requested(session: Session, tenant: str, job_id: str, checkpoint_id: str, target: PushSpec) -> None:
    """Add the push that the request of a job asks for, if any. The checkpoint was just published."""
    if target.repository is not None:
        _add(session, tenant, job_id, checkpoint_id, target)


def request(session: Session, job: Job, target: PushSpec) -> Push:
    """Request a push of the newest checkpoint of a job. Return the row of the push.

    An earlier push to this branch starts again at once, with all its tries, unless it is running. Raises CONFLICT if
    the job has no checkpoint, and LIMIT_REACHED if the job has pushes to `MAX_TARGETS` other branches.
    """
    # The locks prevent a deletion and make other requests wait. A deletion locks in the same order.
    newest = select(Checkpoint.id).where(Checkpoint.job_id == job.id).order_by(Checkpoint.id.desc()).limit(1)
    checkpoint_id = session.scalar(newest.with_for_update(read=True, key_share=True))
    session.scalar(select(Job.id).where(Job.id == job.id).with_for_update())
    if checkpoint_id is None:
        what = "its checkpoint was deleted" if job.status == Status.SUCCEEDED else f"it is {job.status}"
        message = f"{job.id} has no checkpoint to push: {what}. Push the result of a job that has succeeded."
        raise ProblemError(Code.CONFLICT, message)
    same = (Push.job_id == job.id, Push.repository == target.repository, Push.revision == target.revision)
    row = session.scalar(select(Push).where(*same).with_for_update())
    if row is None:
        if (session.scalar(select(func.count()).where(Push.job_id == job.id)) or 0) >= MAX_TARGETS:
            message = f"The result of a job can be pushed to at most {MAX_TARGETS} branches."
            raise ProblemError(Code.LIMIT_REACHED, message)
        row = _add(session, job.tenant, job.id, checkpoint_id, target)
    elif row.state != PushState.RUNNING:
        row.checkpoint_id, row.private, row.state, row.tries = checkpoint_id, target.private, PushState.PENDING, 0
        row.error = row.commit_url = row.finished_at = None
        row.requested_at = row.due_at = func.now()
    session.flush()
    session.refresh(row)
    return row


def list_all(session: Session, job_id: str) -> list[Push]:
    """Return the pushes of a job, the newest request first."""
    query = select(Push).where(Push.job_id == job_id).order_by(Push.requested_at.desc(), Push.id.desc())
    return list(session.scalars(query))


def claim(session: Session) -> ClaimedPush | None:
    """Claim the next due push for `LEASE`. Returns None if no push is due. Tenants take turns, as for imports."""
    due, running = Push.due_at < func.now(), and_(Push.state == PushState.RUNNING, Push.due_at >= func.now())
    row = fair_queueing.claim(session, Queue.PUSHES, Lock.PUSH_CLAIM, Push, due=due, in_work=running)
    if row is None:
        return None
    row.state, row.tries, row.due_at = PushState.RUNNING, row.tries + 1, func.now() + LEASE
    session.flush()
    checkpoint = session.get(Checkpoint, row.checkpoint_id) if row.checkpoint_id else None
    return ClaimedPush(
        id=row.id,
        number=row.tries,
        requested_at=row.requested_at,
        tenant=row.tenant,
        job_id=row.job_id,
        repository=row.repository,
        revision=row.revision,
        private=row.private,
        prefix=checkpoint.prefix if checkpoint else "",
        files=checkpoint.files if checkpoint else None,
    )


def renew(session: Session, push: ClaimedPush) -> bool:
    """Extend the lease of a claimed push. Returns False if it was deleted, or if another worker has claimed it."""
    change = update(Push).where(*_mine(push)).values(due_at=func.now() + LEASE).returning(Push.id)
    return session.execute(change, execution_options={"synchronize_session": False}).first() is not None


def record_success(session: Session, push: ClaimedPush, commit_url: str) -> None:
    """Record that the result is in the repository, and write the event.

    Does nothing if the push was deleted or another worker has claimed it.
    """
    if row := _lock(session, push):
        row.state, row.commit_url, row.error, row.due_at = PushState.PUSHED, commit_url, None, None
        row.finished_at = func.now()
        _record_event(session, push, Transition.PUSHED, {"commit_url": commit_url})


def record_failure(session: Session, push: ClaimedPush, code: str, message: str, *, retry: bool) -> None:
    """Record that a try has failed. With `retry`, the push is tried again later, up to `MAX_TRIES` times.

    Otherwise it has failed, and the event is written. Without `retry`, `message` must contain the way out. After the
    last try, the way out is added here. Does nothing if the push was deleted or another worker has claimed it.
    """
    if row := _lock(session, push):
        if retry and push.number >= MAX_TRIES:
            retry, message = False, f"{message} This was the last of {MAX_TRIES} tries. {AGAIN.format(push.job_id)}"
        row.error = {"code": code, "message": message}
        if retry:
            delay = RETRY_DELAYS[push.number - 1] * secrets.choice(JITTER)
            row.state, row.due_at = PushState.PENDING, func.now() + timedelta(seconds=delay)
            return
        row.state, row.due_at, row.finished_at = PushState.FAILED, None, func.now()
        _record_event(session, push, Transition.PUSH_FAILED, {"error": row.error})


def _add(session: Session, tenant: str, job_id: str, checkpoint_id: str, target: PushSpec) -> Push:
    session.flush()  # the checkpoint's row must exist
    row = Push(
        id=ids.new("push"),
        tenant=tenant,
        job_id=job_id,
        checkpoint_id=checkpoint_id,
        repository=target.repository,
        revision=target.revision,
        private=target.private,
        state=PushState.PENDING,
        due_at=func.now(),
    )
    session.add(row)
    return row


def _mine(push: ClaimedPush) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that are true if this try is still the newest one and is running."""
    same_try = Push.requested_at == push.requested_at, Push.tries == push.number
    return Push.id == push.id, *same_try, Push.state == PushState.RUNNING


def _lock(session: Session, push: ClaimedPush) -> Push | None:
    """Lock and return the row of a claimed push. Returns None if it was deleted or another worker has claimed it."""
    session.scalar(select(Job.id).where(Job.id == push.job_id).with_for_update())  # the job first, as in its deletion
    return session.scalar(select(Push).where(*_mine(push)).with_for_update())


def _record_event(session: Session, push: ClaimedPush, change: Transition, data: Json) -> None:
    row = update(Job).where(Job.id == push.job_id).values(updated_at=func.now()).returning(Job.attempt)
    attempt = session.execute(row, execution_options={"synchronize_session": False}).scalar_one()
    target = {"repository": push.repository, "revision": push.revision}
    record_event(session, push.job_id, attempt, f"{STATUS_EVENT_PREFIX}{change}", {**target, **data})
