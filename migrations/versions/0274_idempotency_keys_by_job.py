"""An index by which the deletion of a job finds its idempotency keys."""

from alembic import op

revision = "0274"
down_revision = "0273"


def upgrade() -> None:
    op.create_index("idempotency_keys_by_job", "idempotency_keys", ["job_id"])


def downgrade() -> None:
    op.drop_index("idempotency_keys_by_job", "idempotency_keys")
