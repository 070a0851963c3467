"""The workers as they tell of themselves: a row each, renewed by its sweep, and marked whenever it takes a hint.

That a process answers does not say that it works: a worker is well while its sweep goes round and, where jobs wait and
it has none, while it takes hints.
"""

import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import ColumnElement, Select, bindparam, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.capability import Capability, fits
from core.settings import Settings
from core.states import Status
from core.tables import Job, Worker

SOFTWARE = ("seft", "torch", "transformers", "celery")
FORGOTTEN = timedelta(days=1)
ROUNDS = 6
"""A worker whose sweep has not gone round for so many times its interval is not well."""
DEAF = timedelta(seconds=600)
"""Nor is one that took no hint for so long while jobs wait; after failures a worker rests for half of it at most."""


def record_heartbeat(session: Session, name: str, has: Capability, temperature: int | None = None) -> None:
    """The worker's sweep goes round: make its row, or renew it; forget workers that are long gone."""
    row = {
        "name": name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {each: version(each) for each in SOFTWARE} | {"python": platform.python_version()},
        **asdict(has),
    }
    now = {"disk": has.disk, "temperature": temperature, "seen_at": func.now()}
    session.execute(insert(Worker).values(row | now).on_conflict_do_update(index_elements=["name"], set_=now))
    session.execute(delete(Worker).where(Worker.seen_at < func.now() - FORGOTTEN))


def record_notification(session: Session, name: str) -> None:
    """The worker took a hint."""
    session.execute(update(Worker).where(Worker.name == name).values(consumed_at=func.now()))


def list_with_jobs(session: Session) -> Sequence[tuple[Worker, Job | None]]:
    """Every worker with the job that it runs, by name."""
    running = (Job.worker == Worker.name) & (Job.status == Status.RUNNING)
    rows = session.execute(select(Worker, Job).outerjoin(Job, running).order_by(Worker.name)).all()
    return [(worker, job) for worker, job in rows]


def is_alive(sweep_seconds: float) -> ColumnElement[bool]:
    """Whether the query's worker was seen of late."""
    return Worker.seen_at > func.now() - timedelta(seconds=ROUNDS * sweep_seconds)


def count(session: Session, sweep_seconds: float) -> int:
    """How many live."""
    return session.scalar(select(func.count()).where(is_alive(sweep_seconds))) or 0


def count_able(session: Session, job: Job, sweep_seconds: float) -> tuple[int, int]:
    """How many live, and how many of them, were they free, could take the job."""
    live, able = session.execute(_who_takes(sweep_seconds), {"job_id": job.id}).one()
    return live, able


@cache
def _who_takes(sweep_seconds: float) -> Select[int, int]:
    able = func.count().filter(fits(Worker))
    query = select(func.count(), able).select_from(Worker).join(Job, Job.id == bindparam("job_id"))
    return query.where(is_alive(sweep_seconds))


def has_larger(session: Session, has: Capability, sweep_seconds: float) -> bool:
    """Whether a worker lives that has a device of this kind with more memory."""
    more = exists().where(is_alive(sweep_seconds), Worker.device == has.device, Worker.memory > has.memory)
    return bool(session.scalar(select(more)))


def is_not_consuming(session: Session, name: str) -> bool:
    """Whether jobs have waited for long while this worker, which runs none, took no hint."""
    late = func.now() - DEAF
    waiting = exists().where(Job.status == Status.QUEUED, Job.updated_at < late)
    busy = exists().where(Job.status == Status.RUNNING, Job.worker == name)
    deaf = select(Worker.name).where(Worker.name == name, Worker.consumed_at < late, waiting, ~busy)
    return session.scalar(deaf) is not None


def of_host(session: Session, host: str) -> list[str]:
    """The workers of this host whose processes live; of those with one process id the last that was seen.

    A container that is started again keeps its host's name, and its worker the process id of the one before.
    """
    rows = session.scalars(select(Worker).where(Worker.host == host).order_by(Worker.seen_at))
    return [name for pid, name in {row.pid: row.name for row in rows}.items() if Path(f"/proc/{pid}").exists()]


def unhealthy(session: Session, names: Sequence[str], settings: Settings) -> list[str]:
    """Those of these workers whose sweep has not been round for long, or that take no hints."""
    rows = session.execute(select(Worker.name, is_alive(settings.sweep_seconds)).where(Worker.name.in_(names))).all()
    return [name for name, lives in rows if not lives or is_not_consuming(session, name)]
