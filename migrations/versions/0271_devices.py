"""The number of devices of a worker."""

import sqlalchemy as sa
from alembic import op

revision = "0271"
down_revision = "0270"


def upgrade() -> None:
    op.add_column("workers", sa.Column("devices", sa.Integer, server_default=sa.text("1"), nullable=False))


def downgrade() -> None:
    op.drop_column("workers", "devices")
