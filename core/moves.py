"""The one place where a job's status changes: by compare-and-swap, with its event in the same transaction.

Who may do what is not decided here; `core.jobs`, `core.attempts` and `core.recovery` call `move`.
"""

from typing import Any

from sqlalchemy import func, insert, update
from sqlalchemy.orm import Session

from core.states import TRANSITIONS, Move, Status
from core.tables import Job, JobEvent


def move(
    session: Session,
    job_id: str,
    move: Move,
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
    change = update(Job).where(*allowed).values({"status": end, **_consequences(move, end), **values})
    now_at = session.execute(
        change.returning(Job.attempt), execution_options={"synchronize_session": False}
    ).scalar_one_or_none()
    if now_at is None:
        return False
    record(session, job_id, now_at, f"job.{move}", data or {})
    return True


def record(session: Session, job_id: str, attempt: int, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Write an event.

    The caller's transaction has changed the job's row before: the row's lock makes the events of a job commit in the
    order of their ids, so a reader that goes on after the last id it saw misses none.
    """
    session.execute(insert(JobEvent).values(job_id=job_id, attempt=attempt, type=type, data=data))


def _consequences(move: Move, end: Status) -> dict[str, Any]:
    """What a move always means for the columns beside the status."""
    values: dict[str, Any] = {}
    if move is Move.CLAIMED:
        values = {"attempt": Job.attempt + 1, "started_at": func.coalesce(Job.started_at, func.now())}
    else:
        values = {"lease_expires_at": None, "phase": None}
    if move in {Move.LOST, Move.RETRIED}:
        values["failures"] = Job.failures + 1
    if end is Status.QUEUED:
        values |= {"worker": None, "hinted_at": None}
    if end.final:
        values["finished_at"] = func.now()
    return values
