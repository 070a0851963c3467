"""How many broken lines of an upload were left out."""

import sqlalchemy as sa
from alembic import op

revision = "0150"
down_revision = "0120"


def upgrade() -> None:
    op.add_column("datasets", sa.Column("skipped", sa.BigInteger, server_default=sa.text("0"), nullable=False))
