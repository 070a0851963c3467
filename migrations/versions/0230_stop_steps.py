"""The step at which a job was asked to stop."""

import sqlalchemy as sa
from alembic import op

revision = "0230"
down_revision = "0220"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("stop_step", sa.Integer))


def downgrade() -> None:
    op.drop_column("jobs", "stop_step")
