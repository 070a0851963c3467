"""Browsers that are signed in to the dashboard."""

import sqlalchemy as sa
from alembic import op

revision = "0060"
down_revision = "0021"


def upgrade() -> None:
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("key_id", sa.Text, sa.ForeignKey("api_keys.id", ondelete="CASCADE"), nullable=False),
        sa.Column("sha256", sa.Text, unique=True, nullable=False),
        sa.Column("former_sha256", sa.Text, index=True),
        sa.Column("csrf", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("rotated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
