"""A table of the jobs' metadata pairs, which can be read in list order. It replaces an index of the JSON."""

import sqlalchemy as sa
from alembic import op

revision = "0101"
down_revision = "0100"


def upgrade() -> None:
    job_id = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    op.create_table(
        "job_labels",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("pair", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Text, job_id, primary_key=True),
    )
    op.execute(
        r"""
        INSERT INTO job_labels (tenant, pair, job_id)
        SELECT tenant, encode(sha256(convert_to(key, 'UTF8') || '\x00'::bytea || convert_to(value, 'UTF8')), 'hex'), id
        FROM jobs, jsonb_each_text(spec -> 'metadata')
        """
    )
    op.create_index("job_labels_by_job", "job_labels", ["job_id"])
    op.drop_index("jobs_by_metadata", "jobs")
