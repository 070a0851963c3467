"""Indexes for the filters of the job list."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_index("jobs_by_model", "jobs", ["tenant", sa.text("(spec ->> 'model')"), "id"])
    op.create_index("jobs_by_metadata", "jobs", [sa.text("(spec -> 'metadata')")], postgresql_using="gin")
