"""The table of workers, one row per worker."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0061"
down_revision = "0060"


def upgrade() -> None:
    times = ("started_at", "seen_at", "consumed_at")
    op.create_table(
        "workers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("versions", JSONB, nullable=False),
        *(sa.Column(n, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False) for n in times),
    )
