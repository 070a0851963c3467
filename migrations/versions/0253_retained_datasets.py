"""The dataset that a job retains."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0253"
down_revision = "0252"

COLUMN, INDEX = "retain_dataset_id", "jobs_by_retained"


def upgrade() -> None:
    op.add_column("jobs", sa.Column(COLUMN, sa.Text, sa.ForeignKey("datasets.id")))
    # After a downgrade, jobs still name the dataset in their request.
    jobs, datasets = (
        sa.table("jobs", sa.column("spec", JSONB), sa.column(COLUMN)),
        sa.table("datasets", sa.column("id")),
    )
    named = jobs.c.spec["repair"]["retain_dataset"].astext
    found = sa.select(datasets.c.id).where(datasets.c.id == named).scalar_subquery()
    op.execute(sa.update(jobs).where(named.is_not(None)).values({COLUMN: found}))
    op.create_index(INDEX, "jobs", [COLUMN], postgresql_where=sa.text(f"{COLUMN} IS NOT NULL"))


def downgrade() -> None:
    op.drop_index(INDEX, "jobs")
    op.drop_column("jobs", COLUMN)
