"""The dataset that a job retains."""

import sqlalchemy as sa
from alembic import op

revision = "0253"
down_revision = "0252"

COLUMN, INDEX = "retain_dataset_id", "jobs_by_retained"


def upgrade() -> None:
    op.add_column("jobs", sa.Column(COLUMN, sa.Text, sa.ForeignKey("datasets.id")))
    op.create_index(INDEX, "jobs", [COLUMN], postgresql_where=sa.text(f"{COLUMN} IS NOT NULL"))


def downgrade() -> None:
    op.drop_index(INDEX, "jobs")
    op.drop_column("jobs", COLUMN)
