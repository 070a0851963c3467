"""The database of a test. If the test changed only rows, a later test gets the same database, emptied.

This costs less than a new database, for which Postgres copies and deletes hundreds of files.
"""

from contextlib import suppress

import psycopg
from psycopg.errors import ObjectInUse
from psycopg.sql import SQL, Identifier

from local.servers import Servers

spare: list[str] = []
"""Empty databases for later tests."""
changed: set[str] = set()
"""Databases whose schema or statistics a test may have changed. No other test gets them."""

USED = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0
"""
"""Names of the tables that may have rows. No migration adds rows to a new database."""
RESTART = """
SELECT setval(oid, 1, false) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
"""
"""Makes every generated id start at 1."""


def take(servers: Servers, template: str, name: str) -> str:
    """Return the name of an empty database: of one that is spare, or else of this name and copied from a template."""
    if spare:
        return spare.pop()
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        copy = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        connection.execute(copy.format(Identifier(name), Identifier(template)))
    return name


def give_back(servers: Servers, name: str, new_name: str) -> None:
    """End the connections to a database, and empty it for a later test or drop it.

    It gets a new name, so that a thread or a process that the test left running cannot connect again.
    """
    with psycopg.connect(servers.postgres.url("postgres"), autocommit=True) as connection:
        if name in changed or not rename(connection, name, new_name):
            connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
            return
    empty(servers.postgres.url(new_name))
    spare.append(new_name)


def empty(url: str) -> None:
    """Delete all rows of a database. The user of the URL must own it."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute(USED).fetchall()
        connection.execute("SET session_replication_role = replica")  # without triggers and foreign keys
        for (table,) in tables:
            connection.execute(SQL("DELETE FROM {}").format(Identifier(table)))
        connection.execute(RESTART)


def rename(connection: psycopg.Connection, name: str, new_name: str) -> bool:
    """End the other connections to a database and rename it. Return False if a thread has connected again."""
    connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
    with suppress(ObjectInUse):
        connection.execute(SQL("ALTER DATABASE {} RENAME TO {}").format(Identifier(name), Identifier(new_name)))
        return True
    return False
