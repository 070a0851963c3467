"""Delete files that jobs and imports leave behind in object storage and on disk.

An ended job keeps only its published checkpoint. A job that continues keeps the state that its next attempt resumes
from. Everything else of a job can be deleted. `delete_unreferenced` deletes objects without a database row: those of
lost attempts, interrupted uploads, and expired or deleted rows. It lists a page of objects first and reads the rows
afterwards, so it sees rows that were created in between. Only the running attempt of a job creates rows for objects of
the job. A recent object without a row may belong to an upload in progress, so it is kept for a day. An object that is
older than the database may be of a lost database and is kept.
"""

import time
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from botocore.exceptions import ClientError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from core import bucket_owner, doctor
from core.datasets import datasets, imports
from core.infra.folders import entries
from core.infra.storage import Storage, StoredObject
from core.states import ENDED, ImportState, Status
from core.tables import ApiKey, Checkpoint, Dataset, Import, Job
from worker import child_files

UNREFERENCED_AGE = timedelta(days=1)
"""Minimum age at which an object without a row is deleted."""

log = structlog.get_logger(__name__)


def is_over(sessions: sessionmaker[Session], job_id: str, attempt: int) -> bool:
    """Return whether no attempt of the job with this number runs or can start.

    After a restore of the database, another worker can have an attempt with the same number. Its objects and its folder
    have the same names.
    """
    with sessions.begin() as session:
        row = session.execute(select(Job.status, Job.attempt).where(Job.id == job_id)).first()
    if row is None:
        return True
    status, newest = row
    return status in ENDED or attempt < newest or (attempt == newest and status != Status.RUNNING)


def delete_leftovers(sessions: sessionmaker[Session], storage: Storage, job_id: str, attempt: int) -> None:
    """Delete the objects of a job that are no longer needed. For a deleted job, these are all its objects.

    A worker calls this after the last write of its attempt, if the attempt `is_over`.
    """
    with sessions.begin() as session:
        row = session.execute(select(Job.status, Job.resume).where(Job.id == job_id)).first()
        published = session.scalars(select(Checkpoint.prefix).where(Checkpoint.job_id == job_id)).all()
    status, resume = row or (None, None)
    ended = row is None or status in ENDED
    kept = published if ended else [file["key"] for file in (resume or {"files": []})["files"]]
    prefix = f"jobs/{job_id}/" if ended else f"jobs/{job_id}/{attempt}/"
    storage.abort_uploads(prefix)
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
    """Return up to `limit` ended jobs, as (job, newest attempt), whose saved states are still in object storage.

    No worker has cleaned up after these jobs, usually because no worker ran them when they ended. The order is random,
    so that jobs whose states cannot be deleted do not block the others.
    """
    ended = select(Job.id, Job.attempt).where(Job.status.in_(ENDED), Job.resume.is_not(None))
    query = ended.order_by(func.random()).limit(limit)
    with sessions.begin() as session:
        return [(job_id, attempt) for job_id, attempt in session.execute(query)]


def clear_scratch(sessions: sessionmaker[Session], scratch: Path) -> None:
    """Delete the scratch folders of jobs that ended or were deleted, and of former attempts of other jobs.

    A worker that was killed leaves them behind. A folder without a row may belong to another service on this machine,
    so it is kept while its files are new.
    """
    folders = {folder.name: folder for folder in scratch.glob("job_*")}
    if not folders:
        return
    with sessions.begin() as session:
        rows = session.execute(select(Job.id, Job.status, Job.attempt).where(Job.id.in_(folders))).all()
    jobs = {job_id: (status, attempt) for job_id, status, attempt in rows}
    for job_id, folder in folders.items():
        status, attempt = jobs.get(job_id, (None, 0))
        if _is_unused(folder) if status is None else status in ENDED:
            child_files.delete_folder(folder)
        elif status:
            # The next attempt has a greater number, so it uses none of these folders.
            child_files.delete_former_attempts(folder, attempt if status == Status.RUNNING else attempt + 1)


def delete_unreferenced(sessions: sessionmaker[Session], storage: Storage) -> int:
    """Delete all objects without a database row. Return their number, without the objects of pages with an error.

    An object that cannot be deleted does not prevent the deletion of objects of other pages. Nothing is deleted if the
    bucket belongs to another service.
    """
    with sessions.begin() as session:
        service = bucket_owner.service_id(session)
    if foreign := bucket_owner.foreign_owner(storage, service):
        log.error("storage.belongs_to_another_service", error=foreign, fix=bucket_owner.FIX)
        return 0
    deletions = {
        "jobs/": _delete_of_jobs,
        "datasets/": _delete_of_datasets,
        "imports/": _delete_of_imports,
        f"{doctor.OBJECTS}/": _delete_of_doctor,
    }
    deleted = 0
    for prefix, delete in deletions.items():
        for page in storage.pages(prefix):
            try:
                deleted += delete(sessions, storage, page)
            except ClientError as error:
                log.warning("storage.not_deleted", prefix=prefix, error=str(error))
    return deleted


def _delete_of_jobs(sessions: sessionmaker[Session], storage: Storage, page: list[StoredObject]) -> int:
    owners = {item: f"{item.key}/".split("/")[1:3] for item in page}
    ids = {job_id for job_id, _ in owners.values()}
    with sessions.begin() as session:
        jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(ids)))}
        prefixes = tuple(session.scalars(select(Checkpoint.prefix).where(Checkpoint.job_id.in_(ids))))
        since, until = _deletable_period(session)
    unreferenced = []
    for item, (job_id, attempt) in owners.items():
        job = jobs.get(job_id)
        if job is None:
            needed = not since <= item.modified < until
        else:
            running = job.status == Status.RUNNING and attempt == str(job.attempt)
            states = [file["key"] for file in (job.resume or {"files": []})["files"]]
            needed = running or item.key in states or item.key.startswith(prefixes)
        if not needed:
            unreferenced.append(item.key)
    storage.delete(unreferenced)
    return len(unreferenced)


def _delete_of_datasets(sessions: sessionmaker[Session], storage: Storage, page: list[StoredObject]) -> int:
    keys = [item.key for item in page]
    with sessions.begin() as session:
        referenced = set(
            session.scalars(select(Dataset.object_key).where(Dataset.object_key.in_(keys), datasets.NOT_DELETED))
        )
        since, until = _deletable_period(session)
    deleted = 0
    for item in page:
        if item.key not in referenced and since <= item.modified < until:
            with sessions.begin() as session:
                deleted += datasets.delete_object(session, storage, item.key, until)
    return deleted


def _delete_of_imports(sessions: sessionmaker[Session], storage: Storage, page: list[StoredObject]) -> int:
    """Delete the files of imports that have ended, and of imports without a row."""
    owners = {item: item.key.removeprefix(imports.key("")) for item in page}
    with sessions.begin() as session:
        rows = session.execute(select(Import.id, Import.state).where(Import.id.in_(owners.values()))).all()
        since, until = _deletable_period(session)
    states, unreferenced = dict(rows), []
    for item, import_id in owners.items():
        state = states.get(import_id)
        if since <= item.modified < until if state is None else state in {ImportState.DONE, ImportState.FAILED}:
            unreferenced.append(item.key)
    storage.delete(unreferenced)
    return len(unreferenced)


def _delete_of_doctor(sessions: sessionmaker[Session], storage: Storage, page: list[StoredObject]) -> int:
    """Delete what a killed `seft doctor` has left. No object of it has a row."""
    with sessions.begin() as session:
        since, until = _deletable_period(session)
    left = [item.key for item in page if since <= item.modified < until]
    storage.delete(left)
    return len(left)


def _is_unused(folder: Path) -> bool:
    """Return whether nothing in a folder was written within `UNREFERENCED_AGE`. A running job saves its state often."""
    try:
        times = [folder.stat().st_mtime, *(each.stat(follow_symlinks=False).st_mtime for each in entries(folder))]
    except FileNotFoundError:  # a file was just deleted, so the folder is in use
        return False
    return time.time() - max(times) > UNREFERENCED_AGE.total_seconds()


def _deletable_period(session: Session) -> tuple[datetime, datetime]:
    """Return two times. An object without a row may be deleted if it was written between them."""
    since, now = session.execute(select(func.min(ApiKey.created_at), func.now())).one()
    return since or now, now - UNREFERENCED_AGE
