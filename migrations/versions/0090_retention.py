"""Expiry of checkpoints, deletion of datasets, and the table of periodic tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0090"
down_revision = "0070"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.create_index("checkpoints_by_expiry", "checkpoints", ["expires_at"])
    op.add_column("datasets", sa.Column("deleted_at", sa.DateTime(timezone=True)))
    op.create_index("datasets_by_object", "datasets", ["object_key"])
    op.create_index("jobs_by_dataset", "jobs", ["dataset_id"])
    op.create_table(
        "chores",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("done_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
