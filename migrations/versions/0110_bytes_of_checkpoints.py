"""Size of each checkpoint in bytes."""

import sqlalchemy as sa
from alembic import op

revision = "0110"
down_revision = "0102"


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("bytes", sa.BigInteger, server_default=sa.text("0"), nullable=False))
    op.execute(
        "UPDATE checkpoints SET bytes ="
        " (SELECT coalesce(sum((file ->> 'size')::bigint), 0) FROM jsonb_array_elements(files) AS file)"
    )
