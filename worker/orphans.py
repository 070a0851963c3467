"""Objects that no row names: of an attempt that came back from the dead, of an upload that broke off, of what expired.

A page of objects is listed first and the rows are read then, so that what has got its row meanwhile is seen. An attempt
that is not the running one gets no row any more. An object of which the database knows nothing at all may be an upload
on its way, so it is left for a day; and one that is older than the database is another one's.
"""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from core.datasets import datasets
from core.infra.storage import Found, Storage
from core.states import Status
from core.tables import ApiKey, Checkpoint, Dataset, Job

YOUNG = timedelta(days=1)


def remove(sessions: sessionmaker[Session], storage: Storage) -> int:
    """Delete them all; how many there were."""
    return sum(_of_jobs(sessions, storage, page) for page in storage.pages("jobs/")) + sum(
        _of_datasets(sessions, storage, page) for page in storage.pages("datasets/")
    )


def _of_jobs(sessions: sessionmaker[Session], storage: Storage, page: list[Found]) -> int:
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


def _of_datasets(sessions: sessionmaker[Session], storage: Storage, page: list[Found]) -> int:
    keys = [found.key for found in page]
    with sessions.begin() as session:
        named = set(session.scalars(select(Dataset.object_key).where(Dataset.object_key.in_(keys), datasets.KEPT)))
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
