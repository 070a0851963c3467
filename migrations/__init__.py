"""Alembic migrations: the steps that build the tables of `core.tables`."""
