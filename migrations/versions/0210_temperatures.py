"""Temperature of a worker's device."""

import sqlalchemy as sa
from alembic import op

revision = "0210"
down_revision = "0200"


def upgrade() -> None:
    op.add_column("workers", sa.Column("temperature", sa.Integer))


def downgrade() -> None:
    op.drop_column("workers", "temperature")
