"""Change the status of a job and write the event of the change, in one transaction. No other code changes a status.

The change is a compare-and-swap: it is made only if the job still has one of the expected statuses. Permissions are
not checked here. The callers are other modules of `core.jobs`.
"""

from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from core import totals, webhooks
from core.states import STATUS_EVENT_PREFIX, TRANSITIONS, Reason, Status, Transition
from core.tables import Job, JobEvent
from core.totals import Sum

PAUSED_MESSAGE = "The job was paused by POST /jobs/{0}/pause. POST /jobs/{0}/resume resumes it."


def transition(
    session: Session,
    job_id: str,
    change: Transition,
    *,
    attempt: int | None = None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> bool:
    """Change the status of a job by a transition of `TRANSITIONS`, and write the event `job.<transition>` with `data`.

    Also sets the columns in `values`. Returns False and writes nothing if the transition is not allowed from the
    current status, or if `attempt` is given and is not the newest attempt of the job.
    """
    starts, end = TRANSITIONS[change]
    allowed = [Job.id == job_id, Job.status.in_(starts)]
    if attempt is not None:
        allowed.append(Job.attempt == attempt)
    statement = update(Job).where(*allowed).values({**_implied_values(change, end), **values})
    seconds = func.coalesce(func.extract("epoch", func.now() - Job.started_at), 0)
    row = session.execute(
        statement.returning(Job.attempt, seconds), execution_options={"synchronize_session": False}
    ).first()
    if row is None:
        return False
    number, duration = row
    record_event(session, job_id, number, f"{STATUS_EVENT_PREFIX}{change}", data or {})
    if end is not None and end.final:
        totals.add(session, Sum.JOB_SECONDS, end, float(duration))
    return True


def requeue(
    session: Session, job_id: str, change: Transition, *, attempt: int, data: dict[str, Any], **values: Any
) -> bool:
    """End an attempt and requeue its job, or pause the job if its tenant has requested a pause.

    Returns False in the same cases as `transition`.
    """
    if not transition(session, job_id, change, attempt=attempt, data=data, **values):
        return False
    if session.scalar(select(Job.pausing).where(Job.id == job_id)):
        hold(session, job_id, Reason.ASKED, PAUSED_MESSAGE.format(job_id))
    return True


def hold(session: Session, job_id: str, reason: Reason, message: str, **more: Any) -> bool:
    """Pause a queued job, or replace the reason of a paused job. `more` are further values to store with the reason."""
    stored = {"code": reason, "message": message, **more}
    return transition(session, job_id, Transition.PAUSED, data={"reason": stored}, reason=stored)


def with_way_out(message: str, job_id: str) -> str:
    """Add what the user can do to the message of a system error. A message with several lines ends with output."""
    end = "\n" if "\n" in message else " " if message.endswith(".") else ". "
    return f"{message}{end}Create the job again with POST /jobs/{job_id}/clone, or ask the operator."


def record_event(session: Session, job_id: str, attempt: int, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Write an event of a job. If the event reports a change of status, also create its webhook deliveries.

    The caller must have locked the job's row in the same transaction, for example by an update. So the events of a job
    are committed in the order of their ids, and a reader that continues after the last id it saw misses no event.
    """
    event = {"job_id": job_id, "attempt": attempt, "type": type, "data": data}
    event_id, at = session.execute(_insert_event(), event).one()
    if type.startswith(STATUS_EVENT_PREFIX):
        webhooks.enqueue(session, job_id, type, {"attempt": attempt, **data}, event_id=event_id, at=at)


@cache
def _insert_event() -> ReturningInsert[int, datetime]:
    return insert(JobEvent).returning(JobEvent.id, JobEvent.created_at)


def _implied_values(change: Transition, end: Status | None) -> dict[str, Any]:
    """Return the values of columns that this transition always sets."""
    if end is None:
        return {}
    values: dict[str, Any] = {"status": end}
    if change is Transition.CLAIMED:
        values |= {"attempt": Job.attempt + 1, "started_at": func.coalesce(Job.started_at, func.now())}
    else:
        values |= {"lease_expires_at": None, "phase": None, "estimated_finish": None}
    if change in {Transition.LOST, Transition.RETRIED}:
        values["failures"] = Job.failures + 1
    if end is Status.QUEUED:
        values |= {"worker": None, "notified_at": None, "reason": None}
    if end is Status.PAUSED or end.final:
        values |= {"pausing": False, "reason": None}
    if end.final:
        values["finished_at"] = func.now()
    return values
