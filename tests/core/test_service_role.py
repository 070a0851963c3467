"""The API and the workers can read and write rows, and change nothing else of the database.

All tests of the service use this role, so it has every right that they need.
"""

from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, OperationalError
from pydantic import PostgresDsn

from core.infra.database import one_session
from core.settings import DatabaseSettings, Settings
from core.tables import Job
from local.servers import Servers
from migrations import service_role, upgrade
from tests.conftest import as_owner

FORBIDDEN = {
    "tables": "DROP TABLE jobs",
    "columns": "ALTER TABLE jobs ADD COLUMN x int",
    "new tables": "CREATE TABLE x (y int)",
    "all rows at once": "TRUNCATE jobs CASCADE",
    "the version of the schema": "UPDATE alembic_version SET version_num = '0001'",
    "roles": "CREATE ROLE x SUPERUSER",
    "itself": "ALTER ROLE CURRENT_USER SUPERUSER",
    "programs of the server": "COPY (SELECT 1) TO PROGRAM 'true'",
    "files of the server": "SELECT pg_read_file('postgresql.conf')",
    "hashes of passwords": "SELECT * FROM pg_authid",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_role_of_the_service_changes_only_rows(settings: Settings, statement: str) -> None:
    with psycopg.connect(str(settings.database_url)) as connection, pytest.raises(InsufficientPrivilege):
        connection.execute(statement)


def test_the_role_of_the_service_reads_rows(settings: Settings) -> None:
    with one_session(settings) as session:
        assert session.query(Job).count() == 0


def with_service(servers: Servers, settings: Settings, user: str, password: str) -> DatabaseSettings:
    owner = as_owner(servers, settings)
    service = str(owner.database_url).replace(f"seft:{servers.postgres.secret}@", f"{user}:{password}@")
    return owner.model_copy(update={"service_database_url": PostgresDsn(service)})


def test_a_new_password_replaces_the_old_one(servers: Servers, settings: Settings) -> None:
    first, second = (with_service(servers, settings, "rotated", password) for password in ("first", "second"))
    for current in (first, second, second):
        upgrade(current)
        with psycopg.connect(str(current.service_database_url)) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("rotated",)
    with pytest.raises(OperationalError, match="password"):
        psycopg.connect(str(first.service_database_url))
    with psycopg.connect(str(first.database_url), autocommit=True) as connection:
        connection.execute("DROP OWNED BY rotated")
        connection.execute("DROP ROLE rotated")


def test_a_role_with_special_rights_is_refused(servers: Servers, settings: Settings) -> None:
    owner = as_owner(servers, settings)
    with psycopg.connect(str(owner.database_url), autocommit=True) as connection:
        connection.execute("CREATE ROLE mighty LOGIN CREATEROLE")
        with pytest.raises(ValueError, match="'mighty' has rolcreaterole"):
            service_role.grant(with_service(servers, settings, "mighty", "x"))
        connection.execute("DROP ROLE mighty")


@pytest.mark.parametrize("url", [None, "owner"])
def test_without_a_second_user_nothing_is_granted(servers: Servers, settings: Settings, url: str | None) -> None:
    owner = as_owner(servers, settings)
    changed: dict[str, Any] = {"service_database_url": owner.database_url if url else None}
    upgrade(owner.model_copy(update=changed))


def test_migrations_need_no_setting_but_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEFT_DATABASE_URL", "postgresql://a:b@c/d")
    assert DatabaseSettings().service_database_url is None
