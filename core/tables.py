"""The tables. Times are the database's; ids are made by `core.ids`; migrations build exactly this (a test compares)."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Double, ForeignKey, Identity, Index, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    """Base of all tables: text without a length, times with a zone, JSON as JSONB, None as NULL and not JSON's null."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's)
        str: Text,
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
    }


class ApiKey(Base):
    """A key that a caller shows. Only its SHA-256 is kept; the key itself is 256 random bits."""

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
    """A tenant's token of the model hub."""

    __tablename__ = "hub_tokens"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[str]
    """Another one for each token that is given."""
    name: Mapped[str]
    """Whose it is, as the hub said when it was given."""
    sealed: Mapped[str]
    """The token, encrypted by `core.access.encryption`."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SignIn(Base):
    """A browser that somebody signed in with a key. Its token is in the browser's cookie; here are hashes alone."""

    __tablename__ = "sign_ins"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(unique=True)
    former_sha256: Mapped[str | None] = mapped_column(index=True)
    """Of the token before the last rotation; good for a moment longer, as requests with it may be on their way."""
    csrf: Mapped[str]
    """What every form of this browser carries."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    rotated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEntry(Base):
    """A change that a caller made. Never changed, never deleted, and no reference holds it to what it tells of."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("audit_log_by_tenant", "tenant", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str]
    request_id: Mapped[str]
    action: Mapped[str]
    """The operation's name in the OpenAPI."""
    target: Mapped[str]
    """Id of what was made or changed."""
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
    """Broken lines of the upload, which are not in the object."""
    object_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]
    """From then on the row is there for the jobs that name it, and its object goes when no other row names it."""


class Import(Base):
    """A dataset on its way here: an upload in parts, or a source that is fetched."""

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
    """Id of the upload in parts, as the object storage knows it."""
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    resume_key: Mapped[str | None]
    skip_percentage: Mapped[float]
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    """Made or being made; the newest one may settle the row."""
    due_at: Mapped[datetime | None]
    """When an importer may take it; None while parts come and when it is settled."""
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id", ondelete="SET NULL"))
    error: Mapped[Json | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Job(Base):
    """A repair job. This row is the truth about it."""

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
    """Of the API key that it was made with; None where none was."""
    request_id: Mapped[str | None]
    """Of the request that made it; None where no request did. Every worker's line about it in the log repeats it."""
    traceparent: Mapped[str | None]
    """The span of that request, where OpenTelemetry is on; what is done to the job lies below it."""
    spec_version: Mapped[int] = mapped_column(server_default=text("0"))
    """What a worker must understand to run it: `core.specs.SPEC_VERSION` of the software that took it."""
    priority: Mapped[int]
    status: Mapped[str]
    phase: Mapped[str | None]
    phase_at: Mapped[datetime | None]
    """When this phase began."""
    progress: Mapped[float] = mapped_column(server_default=text("0"))
    step: Mapped[int] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """Number of the newest attempt; every write of a worker carries it."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Attempts that were charged: lost, or failed on our side."""
    worker: Mapped[str | None]
    pausing: Mapped[bool] = mapped_column(server_default=text("false"))
    """A pause was asked for while it ran: it becomes paused when this attempt is over."""
    stopping: Mapped[bool] = mapped_column(server_default=text("false"))
    """It is to train no further: to judge and publish what there is."""
    stop_step: Mapped[int | None]
    """The step that it had when that was asked; None also where older software was asked."""
    reason: Mapped[Json | None]
    """Why a paused job is paused: {"code", "message"}, and the bytes that it "needs" where there was no room."""
    micro_batch: Mapped[int | None]
    """Windows on the device at a time after memory ran out; None while it never did."""
    needs: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """What a worker must have to take it, as far as that is known: {"disk", "memory", "device"}, see `core.capability`."""
    lease_expires_at: Mapped[datetime | None]
    notified_at: Mapped[datetime | None] = mapped_column("hinted_at")
    """When a broker message last pointed here."""
    resume: Mapped[Json | None]
    """The newest resumable state: {"step", "files": [{"name", "key", "size", "sha256"}]}."""
    scores: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    """Perplexities: {"dense", "pruned", "repaired"}, each once it is known."""
    measured: Mapped[Json | None]
    """Counted from the written file: sparsity of the target linears and of the whole model, zeros grown."""
    estimate: Mapped[Json | None]
    """Of a job that was made to wait for its start: what it was expected to take then."""
    error: Mapped[Json | None]
    """{"fault": "user_error" | "system_error", "code", "message"} of a failed job."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    """When a reader would last have seen a change; a renewed lease or a hint is none."""


class JobLabel(Base):
    """One pair of a job's metadata, by which lists are narrowed. The key keeps a pair's jobs in the order of a list.

    Postgres cannot know how often a pair occurs inside of JSON: it would walk a million jobs for one that is rare, or
    gather a million for a page of 20 where it is common.
    """

    __tablename__ = "job_labels"
    __table_args__ = (Index("job_labels_by_job", "job_id"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    pair: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the name, a NUL, and the value: an index takes no long texts."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


class JobEvent(Base):
    """Something that happened to a job. Never changed; deleted with the job, and what steps told that were lost."""

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
    """What was measured at one step. A resumed attempt writes its steps over those of the lost one."""

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
    """Of `manifest.json`, which holds the sha256 of every other file: equal means equal to the last bit."""
    files: Mapped[list[Json]] = mapped_column(JSONB)
    """[{"name", "size", "sha256"}], the manifest included."""
    bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Of all files together."""
    scores: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    """When it is deleted; None: never."""


class Holding(Base):
    """What a tenant's checkpoints take up, so that nobody has to add up a million of them.

    A trigger of their table keeps it (migration 0220): whatever writes there, of any version, counts.
    """

    __tablename__ = "holdings"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    checkpoints: Mapped[int] = mapped_column(BigInteger)
    """Bytes."""


class Chore(Base):
    """Something that one of the workers does now and then."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    done_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Worker(Base):
    """A worker process, as it told of itself. Which job it runs, the jobs say."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    device_name: Mapped[str] = mapped_column(server_default=text("''"))
    memory: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Bytes on its device."""
    disk: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Bytes free for a job's files when it was last seen."""
    temperature: Mapped[int | None]
    """Degrees Celsius of its device then; None where nothing tells."""
    spec_version: Mapped[int] = mapped_column(server_default=text("0"))
    """The newest requests that it understands."""
    versions: Mapped[Json]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When its sweep last went round."""
    consumed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it last took a hint."""


class Total(Base):
    """A sum that only grows: `core.totals`."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    sum: Mapped[float] = mapped_column(Double)


class Webhook(Base):
    """An address that is told what happens to its tenant's jobs."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("webhooks_by_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(JSONB)
    """Types of events that it wants; none means all of them."""
    secret: Mapped[str]
    """Signs, so it has to be kept as it is."""
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]
    """Of the first failure after the last success."""
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Base):
    """News that a webhook is owed, or was told. Its id is the message's, the same at every try."""

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
    """Made or being made; the newest one may settle the row."""
    log: Mapped[list[Json]] = mapped_column(JSONB, server_default=text("'[]'"))
    """[{"at", "status", "text"}] of every try that ended."""
    due_at: Mapped[datetime | None]
    """When a courier may take it; None when it is settled."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKey(Base):
    """Which job a caller's `Idempotency-Key` made, and from which body."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
