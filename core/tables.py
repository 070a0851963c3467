"""Tables of the database. Times come from the database, ids from `core.ids`. A test compares the migrations."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Double, ForeignKey, Identity, Index, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Base of all tables: text without a length, times with a time zone, JSON as JSONB, None as SQL NULL."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's)
        str: Text,
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
    }


class ApiKey(Base):
    """API key of a tenant: 256 random bits, of which only the SHA-256 is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("api_keys_by_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    scope: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class HubToken(Base):
    """Token of a tenant for the model hub."""

    __tablename__ = "hub_tokens"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str]
    """New for each token that the tenant stores."""
    name: Mapped[str]
    """Name of its account, as the hub returned it when the token was stored."""
    sealed: Mapped[str]
    """The token, encrypted by `core.access.encryption`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SignIn(Base):
    """Session of a browser that signed in with a key. Its token is in the browser's cookie; only hashes are stored."""

    __tablename__ = "sign_ins"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(unique=True)
    former_sha256: Mapped[str | None] = mapped_column(index=True)
    """Hash of the token before the last rotation. It stays valid briefly for requests that were already sent."""
    csrf: Mapped[str]
    """CSRF token in every form of this browser."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    rotated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEntry(Base):
    """A change that a caller made. Never changed or deleted. Has no foreign key to its target."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("audit_log_by_tenant", "tenant", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str]
    request_id: Mapped[str]
    action: Mapped[str]
    """Operation id in the OpenAPI document."""
    target: Mapped[str]
    """Id of the object that was created or changed."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Dataset(Base):
    """An uploaded and validated dataset."""

    __tablename__ = "datasets"
    __table_args__ = (Index("datasets_by_tenant", "tenant", "id"), Index("datasets_by_object", "object_key"))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    format: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    records: Mapped[int] = mapped_column(BigInteger)
    skipped: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Number of invalid lines of the upload, which are not in the object."""
    object_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]
    """Time of deletion. The row stays for the jobs that use it; the object is deleted when no other row uses it."""


class Import(Base):
    """An import of a dataset: an upload in parts, or a download from a source."""

    __tablename__ = "imports"
    __table_args__ = (
        Index("imports_by_tenant", "tenant", "id"),
        Index("imports_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    state: Mapped[str]
    source: Mapped[str | None]
    upload: Mapped[str | None]
    """Id of the multipart upload in the object storage."""
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    resume_key: Mapped[str | None]
    skip_percentage: Mapped[float]
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of tries, a running one included. Only the newest one may finish the row."""
    due_at: Mapped[datetime | None]
    """When an importer may claim it; None while parts are uploaded and when it is finished."""
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"))
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Job(Base):
    """A repair job. The row is the authoritative state of the job."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_tenant", "tenant", "id"),
        Index("jobs_by_dataset", "dataset_id"),
        Index("jobs_by_status", "tenant", "status", "id"),
        Index("jobs_to_claim", text("priority DESC"), "id", postgresql_where=text("status = 'queued'")),
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
        Index("jobs_not_ended", "status", postgresql_where=text("status IN ('queued', 'running', 'paused')")),
        Index("jobs_succeeded", "id", postgresql_where=text("status = 'succeeded'")),
        Index("jobs_with_states", "id", postgresql_where=text("resume IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    spec: Mapped[Json]
    key_id: Mapped[str | None]
    """Id of the API key that created it, if any."""
    request_id: Mapped[str | None]
    """Id of the request that created it, if any. Workers repeat it in every log line about the job."""
    traceparent: Mapped[str | None]
    """Trace context of that request, if OpenTelemetry is on. It is the parent of all spans of the job."""
    spec_version: Mapped[int] = mapped_column(server_default=text("0"))
    """`core.specs.SPEC_VERSION` of the software that accepted it. A worker must have at least this version."""
    priority: Mapped[int]
    status: Mapped[str]
    phase: Mapped[str | None]
    phase_at: Mapped[datetime | None]
    """Start of this phase."""
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    step: Mapped[int] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of the newest attempt. Writes of a worker with another number are rejected."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Failures without progress: attempts whose lease expired or that failed and were retried."""
    worker: Mapped[str | None]
    pausing: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if a pause is pending: the running job is paused when this attempt ends."""
    stopping: Mapped[bool] = mapped_column(server_default=text("false"))
    """True if training ends early, and the result is evaluated and published."""
    stop_step: Mapped[int | None]
    """Step at the time of the stop. None if not stopped, or if older software handled the stop."""
    reason: Mapped[Json | None]
    """Why a paused job is paused: {"code", "message"}, and the bytes that it "needs" if space ran out."""
    micro_batch: Mapped[int | None]
    """Windows on the device at a time after an attempt ran out of memory; None before."""
    needs: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """Known needs of the job: {"disk", "memory", "device"}, each optional. See `core.capability`."""
    lease_expires_at: Mapped[datetime | None]
    notified_at: Mapped[datetime | None] = mapped_column("hinted_at")
    """Time of the last notification to the workers."""
    resume: Mapped[Json | None]
    """Newest saved state: {"step", "files": [{"name", "key", "size", "sha256"}]}."""
    scores: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """Perplexities: {"dense", "pruned", "repaired"}, each as soon as it is measured."""
    measured: Mapped[Json | None]
    """Counted in the exported files: sparsity of the target linears and of the whole model, zeros grown."""
    estimate: Mapped[Json | None]
    """Estimate at creation, of a job with `auto_start: false`."""
    error: Mapped[Json | None]
    """{"fault": "user_error" | "system_error", "code", "message"} of a failed job."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    """Last change that readers can see. A heartbeat or a notification does not count."""


class JobLabel(Base):
    """One pair of a job's metadata, for filters of lists. The primary key has a pair's jobs in the order of a list.

    Postgres has no statistics of pairs inside JSON. It would scan all jobs for a rare pair, or collect all matches of a
    common one for a page of 20.
    """

    __tablename__ = "job_labels"
    __table_args__ = (Index("job_labels_by_job", "job_id"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    pair: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the name, a NUL and the value, since an index cannot store long texts."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


class JobEvent(Base):
    """Event of a job. Never changed. Deleted with the job, or if training restarts and its step was lost."""

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
    """Metrics of one step. A resumed attempt overwrites the steps that it repeats."""

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
    """SHA-256 of `manifest.json`, which has the SHA-256 of every other file. Equal hashes mean equal bits."""
    files: Mapped[list[Json]] = mapped_column(JSONB)
    """[{"name", "size", "sha256"}], `manifest.json` included."""
    bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Total size of all files."""
    scores: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    """Time of deletion; None to keep it permanently."""


class Holding(Base):
    """Total size of a tenant's checkpoints, so that it need not be summed over all of them.

    A trigger on `checkpoints` updates it (migration 0220), so rows of any software version are counted.
    """

    __tablename__ = "holdings"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    checkpoints: Mapped[int] = mapped_column(BigInteger)
    """Bytes."""


class Chore(Base):
    """Periodic task that one of the workers does."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Worker(Base):
    """A worker process, as it described itself. The job that it runs is in `Job.worker`."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    device_name: Mapped[str] = mapped_column(server_default=text("''"))
    memory: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Bytes of memory on its device."""
    disk: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Free bytes for a job's files at `seen_at`."""
    temperature: Mapped[int | None]
    """Temperature of its device at `seen_at` in degrees Celsius; None if unknown."""
    spec_version: Mapped[int] = mapped_column(server_default=text("0"))
    """Newest version of requests that it can run."""
    versions: Mapped[Json]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Time of its last sweep."""
    consumed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Time of the last notification that it received."""


class Total(Base):
    """A sum that only grows, see `core.totals`."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    sum: Mapped[float] = mapped_column(Double)


class Webhook(Base):
    """URL that is notified of events of its tenant's jobs."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("webhooks_by_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(JSONB)
    """Types of events that it subscribes to; an empty list means all."""
    secret: Mapped[str]
    """Key of the signatures, stored in plain text because signing needs it."""
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    """Time of the first failure after the last success."""
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """An event for a webhook, pending or finished. Its id is sent as the message id, the same at every try."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("webhook_deliveries_by_webhook", "webhook_id", "id"),
        Index("webhook_deliveries_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("webhook_deliveries_settled", "created_at", postgresql_where=text("due_at IS NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str]
    body: Mapped[str]
    state: Mapped[str]
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of tries, a running one included. Only the newest one may finish the row."""
    log: Mapped[list[Json]] = mapped_column(JSONB, server_default=text("'[]'"))
    """[{"at", "status", "text"}] per finished try."""
    due_at: Mapped[datetime | None]
    """When a courier may claim it; None when it is finished."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKey(Base):
    """Job that a caller's `Idempotency-Key` created, and the hash of its body."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
