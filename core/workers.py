"""The rows of workers. Each worker updates its own row at every sweep and when it receives a notification.

A worker process can be alive and still not work. A worker is healthy if its sweep runs and, if jobs wait while it is
idle, it receives notifications.
"""

import os
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import ColumnElement, Select, bindparam, delete, exists, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from core.capability import Capability, can_run
from core.settings import Settings
from core.specs import Dtype, Flops
from core.states import Status
from core.tables import Job, Worker

PACKAGES = ("seft", "torch", "transformers", "celery")
DELETE_AFTER = timedelta(days=1)
"""Time without a heartbeat after which the row of a worker is deleted."""
MAX_MISSED_SWEEPS = 6
"""Number of sweep intervals without a sweep after which a worker is unhealthy."""
MAX_SILENCE = timedelta(seconds=600)
"""Time without a notification after which an idle worker is unhealthy if jobs are waiting.

The pause of a worker after errors is at most half of this time.
"""


def record_heartbeat(session: Session, name: str, capability: Capability, temperature: int | None = None) -> None:
    """Create or update the row of a worker. Also delete the rows of workers without a heartbeat for `DELETE_AFTER`."""
    row = {
        "name": name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {each: version(each) for each in PACKAGES} | {"python": platform.python_version()},
        **asdict(capability),
    }
    now = {"disk": capability.disk, "temperature": temperature, "seen_at": func.now()}
    session.execute(insert(Worker).values(row | now).on_conflict_do_update(index_elements=["name"], set_=now))
    session.execute(delete(Worker).where(Worker.seen_at < func.now() - DELETE_AFTER))


def record_flops(session: Session, name: str, flops: Flops) -> None:
    """Record how many operations per second the device of the worker reaches in a product of matrices."""
    values = {"flops": flops[Dtype.FLOAT32], "flops_bfloat16": flops[Dtype.BFLOAT16]}
    session.execute(update(Worker).where(Worker.name == name).values(values))


def find_flops(session: Session) -> dict[str, Flops]:
    """Return the operations per second that workers have measured, by the name of the device."""
    speeds = func.max(Worker.flops), func.max(Worker.flops_bfloat16)
    rows = session.execute(select(Worker.device_name, *speeds).group_by(Worker.device_name)).all()
    return {
        name: {Dtype.FLOAT32: float32, Dtype.BFLOAT16: bfloat16}
        for name, float32, bfloat16 in rows
        if float32 is not None and bfloat16 is not None
    }


def record_notification(session: Session, name: str) -> None:
    """Record that the worker received a notification."""
    session.execute(update(Worker).where(Worker.name == name).values(consumed_at=func.now()))


def list_with_jobs(session: Session, sweep_seconds: float) -> Sequence[tuple[Worker, bool, Job | None]]:
    """Return all workers, ordered by name, as (worker, whether it is alive, the job that it runs or None).

    Workers without a heartbeat for `DELETE_AFTER` are left out. Nobody deletes their rows if no worker runs.
    """
    running = (Job.worker == Worker.name) & (Job.status == Status.RUNNING)
    query = select(Worker, is_alive(sweep_seconds), Job).outerjoin(Job, running).order_by(Worker.name)
    query = query.where(Worker.seen_at > func.now() - DELETE_AFTER)
    return [(worker, alive, job) for worker, alive, job in session.execute(query).all()]


def is_busy(session: Session, name: str) -> bool:
    """Return whether the worker runs a job."""
    return bool(session.scalar(select(exists().where(Job.status == Status.RUNNING, Job.worker == name))))


def is_alive(sweep_seconds: float) -> ColumnElement[bool]:
    """Return an SQL condition that is true if the worker in the row of the query has sent a heartbeat recently."""
    return Worker.seen_at > func.now() - timedelta(seconds=MAX_MISSED_SWEEPS * sweep_seconds)


def count(session: Session, sweep_seconds: float) -> int:
    """Return the number of live workers."""
    return session.scalar(select(func.count()).where(is_alive(sweep_seconds))) or 0


def count_capable(session: Session, job: Job, sweep_seconds: float) -> tuple[int, int]:
    """Return the number of live workers, and the number of those that can run the job. Busy workers count too."""
    alive, capable = session.execute(_capable_query(sweep_seconds), {"job_id": job.id}).one()
    return alive, capable


@cache
def _capable_query(sweep_seconds: float) -> Select[int, int]:
    capable = func.count().filter(can_run(Worker))
    query = select(func.count(), capable).select_from(Worker).join(Job, Job.id == bindparam("job_id"))
    return query.where(is_alive(sweep_seconds))


def has_larger(session: Session, job_id: str, capability: Capability, sweep_seconds: float, devices: int = 1) -> bool:
    """Return whether a live worker can run the job on at least `devices` devices with more memory than this one.

    The devices must be of the same kind, and its software must be able to run the job.
    """
    larger = (Worker.device == capability.device, Worker.memory > capability.memory, Worker.devices >= devices)
    newer = (Job.id == job_id, Job.spec_version <= Worker.spec_version)
    return bool(session.scalar(select(exists().where(is_alive(sweep_seconds), *larger, *newer))))


def is_not_consuming(session: Session, name: str) -> bool:
    """Return whether the worker was idle and received no notification although jobs have waited for a long time."""
    limit = func.now() - MAX_SILENCE
    waiting = exists().where(Job.status == Status.QUEUED, Job.updated_at < limit)
    busy = exists().where(Job.status == Status.RUNNING, Job.worker == name)
    silent = select(Worker.name).where(Worker.name == name, Worker.consumed_at < limit, waiting, ~busy)
    return session.scalar(silent) is not None


def list_on_host(session: Session, host: str) -> list[str]:
    """Return the names of the workers of this host whose processes exist.

    After a restart of the host or the container, another process or thread may have the process id of a worker that
    has ended. It is younger than the worker's last heartbeat, so the worker does not count.
    """
    silence = func.extract("epoch", func.now() - Worker.seen_at)
    rows = session.execute(select(Worker.name, Worker.pid, silence).where(Worker.host == host)).all()
    return [name for name, pid, seconds in rows if seconds < _age(pid)]


def _age(pid: int) -> float:
    """Return the seconds since the process or thread with this id started, or 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def unhealthy(session: Session, names: Sequence[str], settings: Settings) -> list[str]:
    """Return the unhealthy workers of `names`: no sweep runs, or they receive no notifications although jobs wait."""
    rows = session.execute(select(Worker.name, is_alive(settings.sweep_seconds)).where(Worker.name.in_(names))).all()
    return [name for name, alive in rows if not alive or is_not_consuming(session, name)]
