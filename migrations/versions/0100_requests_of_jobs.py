"""The request that created a job, so that log lines about the job can be traced to it."""

import sqlalchemy as sa
from alembic import op

revision = "0100"
down_revision = "0090"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.Text))
