"""The dataset on which a job evaluates its models."""

import sqlalchemy as sa
from alembic import op

revision = "0255"
down_revision = "0254"

COLUMN, INDEX = "evaluate_dataset_id", "jobs_by_evaluated"


def upgrade() -> None:
    op.add_column("jobs", sa.Column(COLUMN, sa.Text, sa.ForeignKey("datasets.id")))
    op.create_index(INDEX, "jobs", [COLUMN], postgresql_where=sa.text(f"{COLUMN} IS NOT NULL"))


def downgrade() -> None:
    op.drop_index(INDEX, "jobs")
    op.drop_column("jobs", COLUMN)
