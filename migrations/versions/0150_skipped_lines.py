"""Number of broken lines that were left out of an upload."""

import sqlalchemy as sa
from alembic import op

revision = "0150"
down_revision = "0120"


def upgrade() -> None:
    op.add_column("datasets", sa.Column("skipped", sa.BigInteger, server_default=sa.text("0"), nullable=False))
