"""How fast a device multiplies in bfloat16."""

import sqlalchemy as sa
from alembic import op

revision = "0270"
down_revision = "0260"


def upgrade() -> None:
    op.add_column("workers", sa.Column("flops_bfloat16", sa.Double))


def downgrade() -> None:
    op.drop_column("workers", "flops_bfloat16")
