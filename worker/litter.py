"""What jobs leave behind: objects that nobody will ask for again, and scratch folders.

Of a job that has ended only its published checkpoint stays. Of an attempt at one that goes on, only what the next
attempt starts from. What is left all the same, `worker.orphans` finds.
"""

import shutil
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from core.infra.storage import Storage
from core.states import Status
from core.tables import Checkpoint, Job

ENDED = tuple(status for status in Status if status.final)


def clear(sessions: sessionmaker[Session], storage: Storage, job_id: str, attempt: int) -> None:
    """Delete the job's objects that may go now, as seen by the worker of this attempt, which writes no more."""
    with sessions.begin() as session:
        status, resume = session.execute(select(Job.status, Job.resume).where(Job.id == job_id)).one()
        published = session.scalars(select(Checkpoint.prefix).where(Checkpoint.job_id == job_id)).all()
    ended = status in ENDED
    kept = published if ended else [file["key"] for file in (resume or {"files": []})["files"]]
    prefix = f"jobs/{job_id}/" if ended else f"jobs/{job_id}/{attempt}/"
    storage.delete([key for key in storage.keys(prefix) if not key.startswith(tuple(kept))])
    if ended:
        with sessions.begin() as session:
            session.execute(
                update(Job)
                .where(Job.id == job_id, Job.status.in_(ENDED))
                .values(resume=None, updated_at=Job.updated_at),
                execution_options={"synchronize_session": False},
            )


def with_states(sessions: sessionmaker[Session], limit: int) -> list[tuple[str, int]]:
    """Jobs that have ended without a worker at hand, whose states still lie in storage; with their newest attempt."""
    left = select(Job.id, Job.attempt).where(Job.status.in_(ENDED), Job.resume.is_not(None)).limit(limit)
    with sessions.begin() as session:
        return [(job_id, attempt) for job_id, attempt in session.execute(left)]


def clear_scratch(sessions: sessionmaker[Session], scratch: Path) -> None:
    """Remove the folders of jobs that have ended: those of a worker that was killed are still there."""
    folders = {folder.name: folder for folder in scratch.glob("job_*")}
    if not folders:
        return
    with sessions.begin() as session:
        ended = session.scalars(select(Job.id).where(Job.id.in_(folders), Job.status.in_(ENDED))).all()
    for job_id in ended:
        shutil.rmtree(folders[job_id], ignore_errors=True)
