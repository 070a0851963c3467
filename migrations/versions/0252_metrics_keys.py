"""Revoke the keys of scope `metrics` that tenants created over HTTP. Only the operator may read metrics of all tenants.

A key that the operator created with `python -m api keys create` has no entry in the audit log, and stays valid.
"""

from alembic import op

revision = "0252"
down_revision = "0251"


def upgrade() -> None:
    op.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE scope = 'metrics' AND revoked_at IS NULL"
        " AND id IN (SELECT target FROM audit_log WHERE action = 'create_key')"
    )


def downgrade() -> None:
    """Do nothing: a revoked key stays revoked."""
