"""Indexes for the jobs that ended last, and for the newest audit entries of an operation."""

import sqlalchemy as sa
from alembic import op

revision = "0273"
down_revision = "0272"


def upgrade() -> None:
    # The audit log may be large. It comes first, because heartbeats of workers wait while `jobs` is locked.
    op.create_index("audit_log_by_action", "audit_log", ["tenant", "action", "created_at"])
    ended = sa.text("finished_at IS NOT NULL")
    op.create_index("jobs_by_end", "jobs", ["tenant", "status", "finished_at"], postgresql_where=ended)


def downgrade() -> None:
    op.drop_index("jobs_by_end", "jobs")
    op.drop_index("audit_log_by_action", "audit_log")
