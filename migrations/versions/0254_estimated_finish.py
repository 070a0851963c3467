"""The time at which a running job will end, and the measured speed of a worker's device."""

import sqlalchemy as sa
from alembic import op

revision = "0254"
down_revision = "0253"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("estimated_finish", sa.DateTime(timezone=True)))
    op.add_column("workers", sa.Column("flops", sa.Double))


def downgrade() -> None:
    op.drop_column("workers", "flops")
    op.drop_column("jobs", "estimated_finish")
