"""An index of the pending deliveries of each webhook, so that they can be counted for every event."""

import sqlalchemy as sa
from alembic import op

revision = "0251"
down_revision = "0250"

NAME, TABLE = "webhook_deliveries_pending", "webhook_deliveries"


def upgrade() -> None:
    op.create_index(NAME, TABLE, ["webhook_id"], postgresql_where=sa.text("due_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_index(NAME, TABLE)
