"""Tries of an import during which the object storage was unavailable, and the time of a dataset's last upload."""

import sqlalchemy as sa
from alembic import op

revision = "0272"
down_revision = "0271"


def upgrade() -> None:
    op.add_column("imports", sa.Column("outages", sa.Integer, server_default=sa.text("0"), nullable=False))
    uploaded = sa.Column("uploaded_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
    op.add_column("datasets", uploaded)
    op.execute("UPDATE datasets SET uploaded_at = created_at")


def downgrade() -> None:
    op.drop_column("datasets", "uploaded_at")
    # `tries` counts the outages too. Older software fails an import with five tries and deletes its file.
    op.execute("UPDATE imports SET tries = tries - outages WHERE outages > 0")
    op.drop_column("imports", "outages")
