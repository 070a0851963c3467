"""Indexes for the sort orders of the job list."""

import sqlalchemy as sa
from alembic import op

revision = "0180"
down_revision = "0170"


def upgrade() -> None:
    sparsity = sa.text("(- ((spec ->> 'sparsity')::double precision))")
    score = sa.text("COALESCE((scores ->> 'repaired')::double precision, 'Infinity'::double precision)")
    op.create_index("jobs_by_sparsity", "jobs", ["tenant", sparsity, sa.text("id DESC")])
    op.create_index("jobs_by_score", "jobs", ["tenant", score, sa.text("id DESC")])
