"""What jobs were expected to take, and the jobs that tell how long others will."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0120"
down_revision = "0110"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("estimate", JSONB))
    op.create_index("jobs_succeeded", "jobs", ["id"], postgresql_where=sa.text("status = 'succeeded'"))
