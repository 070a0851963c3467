"""The first tables: keys, datasets, jobs, and the tables that belong to a job."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False, unique=True),
        _created_at(),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "datasets",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("records", sa.BigInteger, nullable=False),
        sa.Column("object_key", sa.Text, nullable=False),
        _created_at(),
    )
    op.create_index("datasets_by_tenant", "datasets", ["tenant", "id"])
    _jobs()
    op.create_table(
        "job_events",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        _job_id(),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        _created_at(),
    )
    op.create_index("job_events_by_job", "job_events", ["job_id", "id"])
    op.create_table(
        "job_metrics",
        _job_id(primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("values", JSONB, nullable=False),
        _created_at(),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Text, primary_key=True),
        _job_id(),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("files", JSONB, nullable=False),
        sa.Column("scores", JSONB, nullable=False),
        _created_at(),
    )
    op.create_index("checkpoints_by_job", "checkpoints", ["job_id", "id"])
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("body_sha256", sa.Text, nullable=False),
        _job_id(),
        _created_at(),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("dataset_id", sa.Text, sa.ForeignKey("datasets.id"), nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("phase", sa.Text),
        sa.Column("progress", sa.Double, server_default=sa.text("0"), nullable=False),
        sa.Column("step", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("hinted_at", sa.DateTime(timezone=True)),
        sa.Column("resume", JSONB),
        sa.Column("scores", JSONB, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("measured", JSONB),
        sa.Column("error", JSONB),
        _created_at(),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "id"])
    op.create_index("jobs_by_status", "jobs", ["tenant", "status", "id"])
    queued, running = sa.text("status = 'queued'"), sa.text("status = 'running'")
    op.create_index("jobs_to_claim", "jobs", [sa.text("priority DESC"), "id"], postgresql_where=queued)
    op.create_index("jobs_leased", "jobs", ["lease_expires_at"], postgresql_where=running)


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def _job_id(*, primary_key: bool = False) -> sa.Column[str]:
    gone_with_it = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    return sa.Column("job_id", sa.Text, gone_with_it, primary_key=primary_key, nullable=False)
