"""Which request made a job, so that the log tells its whole way."""

import sqlalchemy as sa
from alembic import op

revision = "0100"
down_revision = "0090"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.Text))
