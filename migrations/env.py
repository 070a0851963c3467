"""The script that Alembic runs: all migrations, one process at a time, in the transaction of `migrations.upgrade`."""

from alembic import context
from sqlalchemy import Connection, func, select

from core.infra.database import Lock, lock
from core.tables import Base
from migrations import LOCK_SECONDS

connection: Connection = context.config.attributes["connection"]
lock(connection, Lock.MIGRATION)
connection.execute(select(func.set_config("lock_timeout", f"{LOCK_SECONDS}s", True)))
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
