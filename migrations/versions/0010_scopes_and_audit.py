"""Scope and time of last use of API keys, and the audit log.

Existing keys get the scope `admin`, because until now every key could do everything.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scope", sa.Text, server_default="admin", nullable=False))
    op.alter_column("api_keys", "scope", server_default=None)
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True)))
    op.create_index("api_keys_by_tenant", "api_keys", ["tenant", "id"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    )
    op.create_index("audit_log_by_tenant", "audit_log", ["tenant", "id"])
