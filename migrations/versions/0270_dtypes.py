"""The data type of the weights of a job, and how fast a device multiplies in bfloat16."""

import sqlalchemy as sa
from alembic import op

revision = "0270"
down_revision = "0260"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("dtype", sa.Text))
    op.add_column("workers", sa.Column("bfloat16", sa.Boolean, server_default=sa.text("false"), nullable=False))
    op.add_column("workers", sa.Column("flops_bfloat16", sa.Double))


def downgrade() -> None:
    op.drop_column("workers", "flops_bfloat16")
    op.drop_column("workers", "bfloat16")
    op.drop_column("jobs", "dtype")
