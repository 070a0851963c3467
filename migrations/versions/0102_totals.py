"""Totals that outlive the rows they were counted from, the start time of a job's phase, and indexes for metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0102"
down_revision = "0101"


def upgrade() -> None:
    op.create_table(
        "totals",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("label", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("sum", sa.Double, nullable=False),
    )
    op.add_column("jobs", sa.Column("phase_at", sa.DateTime(timezone=True)))
    ended = sa.text("status IN ('queued', 'running', 'paused')")
    op.create_index("jobs_not_ended", "jobs", ["status"], postgresql_where=ended)
    op.create_index(
        "job_events_by_time",
        "job_events",
        ["created_at"],
        postgresql_using="brin",
        postgresql_with={"autosummarize": True},
    )
