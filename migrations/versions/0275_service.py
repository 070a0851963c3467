"""The id of the service, by which it recognizes its bucket.

A downgrade keeps the table: with another id, the next version would not recognize the bucket. Older software does not
use it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0275"
down_revision = "0274"


def upgrade() -> None:
    op.create_table(
        "service",
        sa.Column("single", sa.Boolean, server_default=sa.true(), primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.CheckConstraint("single", name="service_has_one_row"),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Keep the table."""
