"""The time that a job has run."""

import sqlalchemy as sa
from alembic import op

revision = "0240"
down_revision = "0230"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("run_seconds", sa.Double, nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    op.drop_column("jobs", "run_seconds")
