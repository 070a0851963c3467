"""Pushes: results of jobs that are copied into repositories of the model hub."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0260"
down_revision = "0255"


def upgrade() -> None:
    op.create_table(
        "pushes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("checkpoint_id", sa.Text, sa.ForeignKey("checkpoints.id", ondelete="SET NULL")),
        sa.Column("repository", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("private", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("error", JSONB),
        sa.Column("commit_url", sa.Text),
        sa.Column("requested_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
    )
    op.create_index("pushes_by_job", "pushes", ["job_id", "repository", "revision"], unique=True)
    op.create_index("pushes_by_checkpoint", "pushes", ["checkpoint_id"])
    op.create_index("pushes_due", "pushes", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_table("pushes")
