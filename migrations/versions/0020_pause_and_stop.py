"""Two more actions on a job besides cancelling: pause it, and stop its training early."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0011"


def upgrade() -> None:
    for name in ("pausing", "stopping"):
        op.add_column("jobs", sa.Column(name, sa.Boolean, server_default=sa.text("false"), nullable=False))
    op.add_column("jobs", sa.Column("reason", JSONB))
