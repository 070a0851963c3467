"""The tables of jobs, with their events, metrics and checkpoints."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.tables.base import Base, Json


class Job(Base):
    """A repair job. The state of the job is in this row and nowhere else."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_tenant", "tenant", "id"),
        Index("jobs_by_dataset", "dataset_id"),
        Index("jobs_by_retained", "retain_dataset_id", postgresql_where=text("retain_dataset_id IS NOT NULL")),
        Index("jobs_by_evaluated", "evaluate_dataset_id", postgresql_where=text("evaluate_dataset_id IS NOT NULL")),
        Index("jobs_by_status", "tenant", "status", "id"),
        Index("jobs_in_turn", "tenant", text("priority DESC"), "id", postgresql_where=text("status = 'queued'")),
        Index("jobs_leased", "lease_expires_at", postgresql_where=text("status = 'running'")),
        Index("jobs_by_model", "tenant", text("(spec ->> 'model')"), "id"),
        Index("jobs_without_room", "id", postgresql_where=text("status = 'paused' AND reason ? 'needs'")),
        Index("jobs_by_sparsity", "tenant", text("(- ((spec ->> 'sparsity')::double precision))"), text("id DESC")),
        Index(
            "jobs_by_score",
            "tenant",
            text("COALESCE((scores ->> 'repaired')::double precision, 'Infinity'::double precision)"),
            text("id DESC"),
        ),
        Index("jobs_by_end", "tenant", "status", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("jobs_not_ended", "status", postgresql_where=text("status IN ('queued', 'running', 'paused')")),
        Index("jobs_succeeded", "id", postgresql_where=text("status = 'succeeded'")),
        Index("jobs_with_states", "id", postgresql_where=text("resume IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    retain_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    """The dataset that the job retains, if any."""
    evaluate_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    """The dataset on which the job evaluates its models. None if a part of its dataset is held out instead."""
    spec: Mapped[Json]
    key_id: Mapped[str | None]
    """Id of the API key that created the job, if any."""
    request_id: Mapped[str | None]
    """Id of the request that created the job, if any. Workers write it in every log line about the job."""
    traceparent: Mapped[str | None]
    """Trace context of that request, if OpenTelemetry is on. It is the parent of all spans of the job."""
    spec_version: Mapped[int] = mapped_column(server_default=text("0"))
    """`core.specs.SPEC_VERSION` of the software that accepted the job. Workers with a lower version skip the job."""
    priority: Mapped[int]
    status: Mapped[str]
    phase: Mapped[str | None]
    phase_at: Mapped[datetime | None]
    """Time at which the current phase started."""
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    step: Mapped[int] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of the newest attempt. A write of a worker with another number is rejected."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of failures since the last progress: expired leases and failed attempts."""
    run_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    """Seconds that all attempts have run, as of the last heartbeat. A job has a maximum run time."""
    estimated_finish: Mapped[datetime | None]
    """Time at which the running attempt will have finished the job, as of its last report. None if it is unknown."""
    worker: Mapped[str | None]
    pausing: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if a pause was requested while the job runs. The job is paused when the current attempt ends."""
    stopping: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if the tenant has stopped the job: training ends early, and the result is evaluated and published."""
    stop_step: Mapped[int | None]
    """Step of the job when it was stopped. None if it was not stopped, or if older software handled the stop."""
    reason: Mapped[Json | None]
    """Why a paused job is paused: {"code", "message"}.

    If the sweep can resume the job, "needs" is the free disk space that the job needs, in bytes.
    """
    micro_batch: Mapped[int | None]
    """Number of sequences on all devices at a time, set after an attempt ran out of memory. None: as in `spec`."""
    needs: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """What the job needs from a worker: {"disk", "memory", "device"}, each optional. See `core.capability`."""
    dtype: Mapped[str | None]
    """Data type of the weights in the newest attempt. None before the first one."""
    lease_expires_at: Mapped[datetime | None]
    notified_at: Mapped[datetime | None] = mapped_column("hinted_at")
    """Time at which the workers were last notified of this job."""
    resume: Mapped[Json | None]
    """Newest saved state: {"step", "files": [{"name", "key", "size", "sha256"}]}."""
    scores: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """Perplexities by name, such as "dense", "pruned" and "repaired", each as soon as it is measured."""
    measured: Mapped[Json | None]
    """Counted in the checkpoint: sparsity of the pruned layers, sparsity of the model, and pruned nonzero weights."""
    estimate: Mapped[Json | None]
    """Estimate made when the job was created. Only for jobs with `auto_start: false`."""
    error: Mapped[Json | None]
    """Error of a failed job: {"fault": "user_error" | "system_error", "code", "message"}."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    """Time of the last change that a reader of the job can see. Heartbeats and notifications do not count."""


class JobLabel(Base):
    """One name-value pair of a job's metadata. Lists of jobs are filtered with these rows.

    The primary key sorts the jobs of a pair in the order of a list. Postgres has no statistics of the pairs inside the
    JSON column. It would scan all jobs to find a rare pair, or collect all jobs with a common pair for a page of 20.
    """

    __tablename__ = "job_labels"
    __table_args__ = (Index("job_labels_by_job", "job_id"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    pair: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the name, a NUL character and the value. An index cannot store long texts."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


class JobEvent(Base):
    """Event of a job. It is never changed. It is deleted with the job, or if training restarts and its step is lost."""

    __tablename__ = "job_events"
    __table_args__ = (
        Index("job_events_by_job", "job_id", "id"),
        Index("job_events_by_time", "created_at", postgresql_using="brin", postgresql_with={"autosummarize": True}),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    type: Mapped[str]
    data: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class JobMetric(Base):
    """Metrics of one step. An attempt that resumes from a saved state overwrites the steps that it repeats."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    values: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Checkpoint(Base):
    """A published checkpoint in object storage."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("checkpoints_by_job", "job_id", "id"), Index("checkpoints_by_expiry", "expires_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]
    step: Mapped[int]
    prefix: Mapped[str]
    sha256: Mapped[str]
    """SHA-256 of `manifest.json`, which lists the SHA-256 of every other file. Equal hashes mean equal checkpoints."""
    files: Mapped[list[Json]] = mapped_column(JSONB)
    """All files, including `manifest.json`: [{"name", "size", "sha256"}]."""
    bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Total size of all files in bytes."""
    scores: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    """Time from which the checkpoint is deleted if nothing uses it. None to keep it permanently."""


class Holding(Base):
    """Total size of a tenant's checkpoints, stored so that it need not be computed from all checkpoints.

    A trigger on the table `checkpoints` updates it (migration 0220), so it also counts rows that another version of
    the software writes.
    """

    __tablename__ = "holdings"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    checkpoints: Mapped[int] = mapped_column(BigInteger)
    """Total size of the checkpoints in bytes."""


class IdempotencyKey(Base):
    """The job that was created with an `Idempotency-Key`, and the hash of the request's body."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_by_job", "job_id"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
