"""The API key that created a job."""

import sqlalchemy as sa
from alembic import op

revision = "0160"
down_revision = "0150"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("key_id", sa.Text))
