"""The script that Alembic runs: all migrations, one process at a time, in the transaction of `migrations.upgrade`."""

from alembic import context
from sqlalchemy import Connection, func, select

from core.tables import Base
from migrations import LOCK_SECONDS

MIGRATION_LOCK = 0x5EF71
"""Key of an advisory lock. Of two processes that start together, one migrates, and the other has nothing to do."""

connection: Connection = context.config.attributes["connection"]
connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
connection.execute(select(func.set_config("lock_timeout", f"{LOCK_SECONDS}s", True)))
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
