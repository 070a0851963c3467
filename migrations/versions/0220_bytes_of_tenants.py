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
CREATE TRIGGER count_{deed} AFTER {deed} ON checkpoints REFERENCING {rows} TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION count_checkpoints()
"""
COUNTED = """
INSERT INTO holdings (tenant, checkpoints)
SELECT tenant, sum(bytes) FROM checkpoints JOIN jobs ON jobs.id = checkpoints.job_id GROUP BY tenant
"""
DEEDS = {"insert": "NEW", "delete": "OLD"}


def upgrade() -> None:
    op.create_table(
        "holdings",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("checkpoints", sa.BigInteger, nullable=False),
    )
    op.execute(COUNT)
    for deed, rows in DEEDS.items():  # locks out other writers of checkpoints until the commit
        op.execute(TRIGGER.format(deed=deed, rows=rows))
    op.execute(COUNTED)


def downgrade() -> None:
    for deed in DEEDS:
        op.execute(f"DROP TRIGGER count_{deed} ON checkpoints")
    op.execute("DROP FUNCTION count_checkpoints")
    op.drop_table("holdings")
