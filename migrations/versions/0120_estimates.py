"""Estimates of jobs, and an index of the succeeded jobs that time estimates are based on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0120"
down_revision = "0110"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("estimate", JSONB))
    op.create_index("jobs_succeeded", "jobs", ["id"], postgresql_where=sa.text("status = 'succeeded'"))
