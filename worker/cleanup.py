"""What jobs leave behind in object storage and on the disk, and its removal.

An ended job keeps only its published checkpoint. A job that continues keeps the state that its next attempt starts
from. `delete_unreferenced` finds what is left anyway: objects of a lost attempt, of an interrupted upload, and of
what expired. It lists a page of objects first and reads the rows afterwards, so it sees rows that were made meanwhile.
An attempt that is not the running one gets no new row. An object that the database does not know may be an upload in
progress, so it stays for a day. An object older than the database belongs to somebody else.
"""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from core.datasets import datasets
from core.infra.storage import Storage, StoredObject
from core.states import Status
from core.tables import ApiKey, Checkpoint, Dataset, Job

YOUNG = timedelta(days=1)
ENDED = tuple(status for status in Status if status.final)


def delete_leftovers(sessions: sessionmaker[Session], storage: Storage, job_id: str, attempt: int) -> None:
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


def ended_with_states(sessions: sessionmaker[Session], limit: int) -> list[tuple[str, int]]:
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


def delete_unreferenced(sessions: sessionmaker[Session], storage: Storage) -> int:
    """Delete them all; how many there were."""
    return sum(_of_jobs(sessions, storage, page) for page in storage.pages("jobs/")) + sum(
        _of_datasets(sessions, storage, page) for page in storage.pages("datasets/")
    )


def _of_jobs(sessions: sessionmaker[Session], storage: Storage, page: list[StoredObject]) -> int:
    places = {found: f"{found.key}/".split("/")[1:3] for found in page}
    ids = {job_id for job_id, _ in places.values()}
    with sessions.begin() as session:
        jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids)))}
        prefixes = tuple(session.scalars(select(Checkpoint.prefix).where(Checkpoint.job_id.in_(ids))))
        since, until = _age(session)
    gone = []
    for found, (job_id, attempt) in places.items():
        job = jobs.get(job_id)
        if job is None:
            wanted = not since <= found.modified < until
        else:
            running = job.status == Status.RUNNING and attempt == str(job.attempt)
            states = [file["key"] for file in (job.resume or {"files": []})["files"]]
            wanted = running or found.key in states or found.key.startswith(prefixes)
        if not wanted:
            gone.append(found.key)
    storage.delete(gone)
    return len(gone)


def _of_datasets(sessions: sessionmaker[Session], storage: Storage, page: list[StoredObject]) -> int:
    keys = [found.key for found in page]
    with sessions.begin() as session:
        named = set(
            session.scalars(select(Dataset.object_key).where(Dataset.object_key.in_(keys), datasets.NOT_DELETED))
        )
        since, until = _age(session)
    removed = 0
    for found in page:
        if found.key not in named and since <= found.modified < until:
            with sessions.begin() as session:
                removed += datasets.delete_object(session, storage, found.key, until)
    return removed


def _age(session: Session) -> tuple[datetime, datetime]:
    """Between these times an object was written that may be deleted though the database knows nothing of it."""
    since, now = session.execute(select(func.min(ApiKey.created_at), func.now())).one()
    return since or now, now - YOUNG
