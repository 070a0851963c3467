"""Bytes of each tenant's checkpoints, updated by a trigger.

During an upgrade, older workers still write checkpoints, so only the database sees all of them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0220"
down_revision = "0210"

COUNT = """
CREATE FUNCTION count_checkpoints() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO holdings (tenant, checkpoints)
    SELECT tenant, sum(CASE TG_OP WHEN 'INSERT' THEN changed.bytes ELSE -changed.bytes END)
    FROM changed JOIN jobs ON jobs.id = changed.job_id GROUP BY tenant ORDER BY tenant
    ON CONFLICT (tenant) DO UPDATE SET checkpoints = holdings.checkpoints + excluded.checkpoints;
    RETURN NULL;
END $$
"""
TRIGGER = """
CREATE TRIGGER count_{operation} AFTER {operation} ON checkpoints REFERENCING {rows} TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION count_checkpoints()
"""
COUNTED = """
INSERT INTO holdings (tenant, checkpoints)
SELECT tenant, sum(bytes) FROM checkpoints JOIN jobs ON jobs.id = checkpoints.job_id GROUP BY tenant
"""
OPERATIONS = {"insert": "NEW", "delete": "OLD"}


def upgrade() -> None:
    op.create_table(
        "holdings",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("checkpoints", sa.BigInteger, nullable=False),
    )
    op.execute(COUNT)
    for operation, rows in OPERATIONS.items():  # locks out other writers of checkpoints until the commit
        op.execute(TRIGGER.format(operation=operation, rows=rows))
    op.execute(COUNTED)


def downgrade() -> None:
    for operation in OPERATIONS:
        op.execute(f"DROP TRIGGER count_{operation} ON checkpoints")
    op.execute("DROP FUNCTION count_checkpoints")
    op.drop_table("holdings")
