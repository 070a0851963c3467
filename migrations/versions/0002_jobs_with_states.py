"""An index of the jobs whose states lie in storage: the sweep looks for them every few seconds, and they are few."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("jobs_with_states", "jobs", ["id"], postgresql_where=sa.text("resume IS NOT NULL"))
