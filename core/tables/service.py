"""The tables of the service itself: its id, workers, periodic tasks, turns in shared queues, and sums."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Double, func, text, true
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, Json


class Service(Base):
    """The only row of this table has the id of the service. See `core.bucket_owner`."""

    __tablename__ = "service"
    __table_args__ = (CheckConstraint("single", name="service_has_one_row"),)

    single: Mapped[bool] = mapped_column(primary_key=True, server_default=true())
    id: Mapped[str]


class Worker(Base):
    """A worker process, as it has described itself. The job that it runs is found by `Job.worker`."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    device_name: Mapped[str] = mapped_column(server_default=text("''"))
    memory: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Bytes of memory on the device."""
    disk: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Bytes of free disk space for a job's files at `seen_at`."""
    devices: Mapped[int] = mapped_column(server_default=text("1"))
    """Number of devices, all of the same kind and size."""
    bfloat16: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the device has instructions for bfloat16."""
    temperature: Mapped[int | None]
    """Temperature of the device at `seen_at` in degrees Celsius. None if unknown."""
    flops: Mapped[float | None] = mapped_column(Double)
    """Operations per second of matrix products in float32. None if they are not measured yet."""
    flops_bfloat16: Mapped[float | None] = mapped_column(Double)
    """The same in bfloat16. Both are measured together."""
    spec_version: Mapped[int] = mapped_column(server_default=text("0"))
    """Newest version of job requests that the worker can run."""
    versions: Mapped[Json]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Time of the last sweep of this worker."""
    consumed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Time of the last notification that this worker received."""


class Chore(Base):
    """A periodic task that only one worker does each time."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Turn(Base):
    """The turns of a tenant in a queue that tenants share, in virtual time. See `core.fair_queueing`."""

    __tablename__ = "turns"

    queue: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    served: Mapped[float] = mapped_column(Double)
    """Start of the turn in which the tenant was served last."""
    next: Mapped[float] = mapped_column(Double)
    """Earliest start of its next turn."""


class Total(Base):
    """A sum that only grows. See `core.totals`."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    sum: Mapped[float] = mapped_column(Double)
