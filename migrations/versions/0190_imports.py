"""Imports: datasets uploaded in parts, or fetched from a remote source."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0190"
down_revision = "0180"


def upgrade() -> None:
    op.create_table(
        "imports",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("source", sa.Text),
        sa.Column("upload", sa.Text),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("resume_key", sa.Text),
        sa.Column("skip_percentage", sa.Double, nullable=False),
        sa.Column("tries", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("dataset_id", sa.Text, sa.ForeignKey("datasets.id", ondelete="SET NULL")),
        sa.Column("error", JSONB),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    op.create_index("imports_by_tenant", "imports", ["tenant", "id"])
    op.create_index("imports_due", "imports", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))
