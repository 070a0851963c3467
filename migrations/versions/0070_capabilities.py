"""Capabilities of workers and needs of jobs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0070"
down_revision = "0040"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("needs", JSONB, server_default=sa.text("'{}'"), nullable=False))
    op.execute("UPDATE jobs SET needs = jsonb_build_object('disk', reason -> 'needs') WHERE reason ? 'needs'")
    op.add_column("workers", sa.Column("device_name", sa.Text, server_default=sa.text("''"), nullable=False))
    for name in ("memory", "disk"):
        op.add_column("workers", sa.Column(name, sa.BigInteger, server_default=sa.text("0"), nullable=False))
    op.add_column("workers", sa.Column("spec_version", sa.Integer, server_default=sa.text("0"), nullable=False))
