"""What a job that ran into a limit needs: the disk space, and a micro-batch that may fit into memory."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("micro_batch", sa.Integer))
    waits = sa.text("status = 'paused' AND reason ? 'needs'")
    op.create_index("jobs_without_room", "jobs", ["id"], postgresql_where=waits)
