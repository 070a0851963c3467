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
    # A saved state continues only in its data type, and the older software does not know it.
    saved = "SELECT id FROM jobs WHERE dtype = 'bfloat16' AND resume IS NOT NULL AND finished_at IS NULL"
    if unfinished := op.get_bind().execute(sa.text(f"{saved} LIMIT 1")).scalar():
        raise ValueError(
            f"{unfinished} has a saved state in bfloat16. Start the service again. Then let such jobs end, or cancel"
            " them"
        )
    op.drop_column("workers", "flops_bfloat16")
    op.drop_column("workers", "bfloat16")
    op.drop_column("jobs", "dtype")
