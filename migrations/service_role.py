"""Give the API and the workers a role of Postgres that can read and write rows, and nothing else.

The owner of the tables runs the migrations, and creates this role. If the API or a worker is taken over, the tables and
the server's other databases stay out of reach.
"""

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from core.infra.database import Lock, url
from core.settings import DatabaseSettings

POWERS = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
GRANTS = (
    "GRANT CONNECT ON DATABASE {database} TO {role}",
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    "GRANT USAGE ON SCHEMA public TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
    "REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {role}",
)


def grant(settings: DatabaseSettings) -> None:
    """Create the role of `service_database_url` if it is missing, set its password, and grant it access to all tables.

    Idempotent. Does nothing if the URL is not set or names the owner itself. Raises ValueError if the role exists and
    may do more than that.
    """
    if settings.service_database_url is None:
        return
    owner, service = url(settings), make_url(str(settings.service_database_url))
    if service.username in {None, owner.username}:
        return
    role = sql.Identifier(str(service.username))
    with psycopg.connect(owner.set(drivername="postgresql").render_as_string(hide_password=False)) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [Lock.GRANT.value])
        powers = sql.SQL(", ").join(map(sql.Identifier, POWERS))
        found = connection.execute(
            sql.SQL("SELECT {} FROM pg_roles WHERE rolname = %s").format(powers), [service.username]
        ).fetchone()
        if found is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        elif any(found):
            excess = [name for name, has in zip(POWERS, found, strict=True) if has]
            raise ValueError(
                f"the role in SEFT_SERVICE_DATABASE_URL must have no special rights; {service.username!r} has"
                f" {', '.join(excess)}. Name another role, which is then created."
            )
        if service.password:
            # The server gets and logs only a hash.
            password = connection.pgconn.encrypt_password(
                str(service.password).encode(), str(service.username).encode(), b"scram-sha-256"
            )
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(password.decode()))
            connection.execute(statement)
        database = sql.Identifier(connection.info.dbname)
        for each in GRANTS:
            connection.execute(sql.SQL(each).format(role=role, database=database))
