"""Index of the jobs that have a state in storage. The sweep queries these few jobs every few seconds."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("jobs_with_states", "jobs", ["id"], postgresql_where=sa.text("resume IS NOT NULL"))
