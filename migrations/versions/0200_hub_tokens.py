"""Encrypted tokens for the model hub, one per tenant."""

import sqlalchemy as sa
from alembic import op

revision = "0200"
down_revision = "0190"


def upgrade() -> None:
    op.create_table(
        "hub_tokens",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("hub_tokens")
