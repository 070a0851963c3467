"""Turns of the tenants in the queues that they share, and an index of each tenant's queued jobs in their order."""

import sqlalchemy as sa
from alembic import op

revision = "0250"
down_revision = "0240"

QUEUED = sa.text("status = 'queued'")


def upgrade() -> None:
    op.create_table(
        "turns",
        sa.Column("queue", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("served", sa.Double, nullable=False),
        sa.Column("next", sa.Double, nullable=False),
    )
    op.create_index("jobs_in_turn", "jobs", ["tenant", sa.text("priority DESC"), "id"], postgresql_where=QUEUED)
    op.drop_index("jobs_to_claim", "jobs")


def downgrade() -> None:
    op.create_index("jobs_to_claim", "jobs", [sa.text("priority DESC"), "id"], postgresql_where=QUEUED)
    op.drop_index("jobs_in_turn", "jobs")
    op.drop_table("turns")
