"""Version of the job spec that a worker must understand to run a job."""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0062"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("spec_version", sa.Integer, server_default=sa.text("0"), nullable=False))
