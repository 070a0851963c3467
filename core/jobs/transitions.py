"""The one place where a job's status changes: by compare-and-swap, with its event in the same transaction.

Who may do what is not decided here; `core.jobs.actions`, `core.jobs.attempts` and `core.jobs.recovery` call `move`.
"""

from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from core import totals, webhooks
from core.states import TRANSITIONS, Reason, Status, Transition
from core.tables import Job, JobEvent
from core.totals import Sum

MOVE = "job."
"""How the types of events begin that tell of a change of a job's status, which is what webhooks want to know."""


def transition(
    session: Session,
    job_id: str,
    move: Transition,
    *,
    attempt: int | None = None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> bool:
    """Move the job along `TRANSITIONS`, set `values`, and leave the event `job.<move>` with `data`.

    False, and nothing is written, when the job is not in a state that the move starts from, or when `attempt` is
    given and is not the newest one.
    """
    starts, end = TRANSITIONS[move]
    allowed = [Job.id == job_id, Job.status.in_(starts)]
    if attempt is not None:
        allowed.append(Job.attempt == attempt)
    change = update(Job).where(*allowed).values({**_consequences(move, end), **values})
    seconds = func.coalesce(func.extract("epoch", func.now() - Job.started_at), 0)
    moved = session.execute(
        change.returning(Job.attempt, seconds), execution_options={"synchronize_session": False}
    ).first()
    if moved is None:
        return False
    now_at, lasted = moved
    record_event(session, job_id, now_at, f"job.{move}", data or {})
    if end is not None and end.final:
        totals.add(session, Sum.JOB_SECONDS, end, float(lasted))
    return True


def requeue(
    session: Session, job_id: str, to: Transition, *, attempt: int, data: dict[str, Any], **values: Any
) -> bool:
    """An attempt is over and the job is not: it waits for the next one, or pauses where that was asked for."""
    if not transition(session, job_id, to, attempt=attempt, data=data, **values):
        return False
    if session.scalar(select(Job.pausing).where(Job.id == job_id)):
        hold(session, job_id, Reason.ASKED, "A pause was asked for.")
    return True


def hold(session: Session, job_id: str, reason: Reason, message: str, **more: Any) -> bool:
    """Keep a job that waits from all workers, and say why now; `more` is kept with the reason."""
    told = {"code": reason, "message": message, **more}
    return transition(session, job_id, Transition.PAUSED, data={"reason": told}, reason=told)


def record_event(session: Session, job_id: str, attempt: int, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Write an event.

    The caller's transaction has changed the job's row before: the row's lock makes the events of a job commit in the
    order of their ids, so a reader that goes on after the last id it saw misses none.
    """
    event = {"job_id": job_id, "attempt": attempt, "type": type, "data": data}
    event_id, at = session.execute(_noted(), event).one()
    if type.startswith(MOVE):
        webhooks.enqueue(session, job_id, type, {"attempt": attempt, **data}, event_id=event_id, at=at)


@cache
def _noted() -> ReturningInsert[int, datetime]:
    return insert(JobEvent).returning(JobEvent.id, JobEvent.created_at)


def _consequences(move: Transition, end: Status | None) -> dict[str, Any]:
    """What a move means for the columns, always."""
    if end is None:
        return {}
    values: dict[str, Any] = {"status": end}
    if move is Transition.CLAIMED:
        values |= {"attempt": Job.attempt + 1, "started_at": func.coalesce(Job.started_at, func.now())}
    else:
        values |= {"lease_expires_at": None, "phase": None}
    if move in {Transition.LOST, Transition.RETRIED}:
        values["failures"] = Job.failures + 1
    if end is Status.QUEUED:
        values |= {"worker": None, "notified_at": None, "reason": None}
    if end is Status.PAUSED or end.final:
        values |= {"pausing": False, "reason": None}
    if end.final:
        values["finished_at"] = func.now()
    return values
