"""Trace context of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0170"
down_revision = "0160"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.Text))
