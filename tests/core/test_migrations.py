"""The migrations build exactly the tables of the code, and do not block other transactions."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from core import bucket_owner
from core.infra.database import make_engine, make_sessions
from core.jobs import fairness, jobs
from core.settings import Settings
from core.tables import Base
from local.servers import Servers
from migrations import HERE, downgrade, upgrade
from tests.conftest import as_owner
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
KEPT = {"service"}
"""Tables that a downgrade keeps."""


@pytest.fixture
def settings(settings: Settings, servers: Servers) -> Settings:
    """The owner of the database runs the migrations."""
    return as_owner(servers, settings)


@pytest.fixture
def empty(settings: Settings) -> Iterator[Engine]:
    engine = make_engine(settings)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    yield engine
    engine.dispose()


def test_migrated_schema_equals_the_tables(settings: Settings, empty: Engine) -> None:
    upgrade(settings)
    upgrade(settings)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def indexes(engine: Engine) -> dict[str, str]:
    """Return the definition of every index, which Alembic compares only in part: it ignores the condition."""
    query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    with engine.connect() as connection:
        return dict(connection.exec_driver_sql(query).all())


def test_migrated_indexes_equal_those_of_the_tables(settings: Settings, empty: Engine) -> None:
    upgrade(settings)
    migrated = indexes(empty)
    with empty.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    Base.metadata.create_all(empty)
    assert migrated == indexes(empty)


def test_the_rows_of_a_deleted_job_are_found_by_an_index() -> None:
    """Otherwise Postgres scans the whole table at each deletion."""
    for table in Base.metadata.tables.values():
        firsts = {next(iter(index.expressions)) for index in table.indexes} | {next(iter(table.primary_key))}
        of_jobs = {key.parent for key in table.foreign_keys if key.ondelete and key.column.table.name == "jobs"}
        assert of_jobs <= firsts


def columns(engine: Engine) -> dict[tuple[str, str], tuple[str, bool, str | None]]:
    """Return type, nullability and default of every column."""
    inspector = inspect(engine)
    return {
        (table, column["name"]): (str(column["type"]), column["nullable"], column["default"])
        for table in inspector.get_table_names()
        for column in inspector.get_columns(table)
    }


def test_the_last_migration_can_be_undone_and_keeps_the_columns_of_older_software(
    settings: Settings, empty: Engine
) -> None:
    config = Config()
    config.set_main_option("script_location", str(HERE))
    newest = ScriptDirectory.from_config(config).get_revision("head")
    assert newest
    assert isinstance(newest.down_revision, str)
    upgrade(settings, newest.down_revision)
    older = columns(empty)
    upgrade(settings)
    newer = columns(empty)
    assert {name: newer.get(name) for name in older} == older
    tables = {table for table, _ in older}
    required = {name for name, (_, null, default) in newer.items() if not null and default is None}
    assert not {name for name in required - set(older) if name[0] in tables}, "older software could not write its rows"
    downgrade(settings, newest.revision)
    assert columns(empty) == newer, "the older version has the same migrations"
    downgrade(settings, newest.down_revision)
    assert columns(empty) == older | {name: kind for name, kind in newer.items() if name[0] in KEPT}
    upgrade(settings)
    assert columns(empty) == newer


def test_a_service_has_the_same_id_after_a_downgrade(settings: Settings, empty: Engine) -> None:
    def read() -> str:
        with make_sessions(empty).begin() as session:
            return bucket_owner.service_id(session)

    upgrade(settings)
    before = read()
    downgrade(settings, "0274")
    upgrade(settings)
    assert read() == before


def upgrade_rows(settings: Settings, empty: Engine, revision: str, rows: str) -> None:
    """Write rows of jobs with a dataset "file_1" into the tables of an older revision, and upgrade them."""
    dataset = """
    INSERT INTO datasets (id, tenant, name, format, sha256, bytes, records, object_key)
    VALUES ('file_1', 'ours', 'x', 'text', '0', 1, 1, 'x');
    """
    upgrade(settings, revision)
    with empty.begin() as connection:
        connection.exec_driver_sql(dataset + rows)
    upgrade(settings)


@pytest.mark.parametrize("revision", ["0", "base", "-1", "head"])
def test_only_a_full_revision_can_be_gone_back_to(settings: Settings, revision: str) -> None:
    with pytest.raises(ValueError, match="the revision must be the number of a file"):
        downgrade(settings, revision)


def test_an_old_migration_cannot_be_undone(settings: Settings, empty: Engine) -> None:
    upgrade(settings)
    newer = columns(empty)
    with pytest.raises(ValueError, match="cannot be undone"):
        downgrade(settings, "0101")
    assert columns(empty) == newer


def test_jobs_keep_the_datasets_of_their_request_if_migrations_are_undone_and_run_again(
    settings: Settings, empty: Engine
) -> None:
    rows = """
    INSERT INTO jobs (id, tenant, dataset_id, spec, priority, status, retain_dataset_id, evaluate_dataset_id)
    VALUES ('job_1', 'ours', 'file_1', '{"repair": {"retain_dataset": "file_1"}, "evaluate": {"dataset": "file_1"}}', 0,
            'queued', 'file_1', 'file_1'),
           ('job_2', 'ours', 'file_1', '{"repair": {"retain_dataset": null}}', 0, 'queued', NULL, NULL);
    """
    upgrade_rows(settings, empty, "0255", rows)
    downgrade(settings, "0252")
    upgrade(settings)
    with empty.connect() as connection:
        query = "SELECT id, retain_dataset_id, evaluate_dataset_id FROM jobs ORDER BY id"
        found = [tuple(row) for row in connection.exec_driver_sql(query)]
    assert found == [("job_1", "file_1", "file_1"), ("job_2", None, None)]


def test_a_state_in_bfloat16_is_not_given_to_software_that_does_not_know_it(settings: Settings, empty: Engine) -> None:
    rows = """
    INSERT INTO jobs (id, tenant, dataset_id, spec, priority, status, dtype, resume)
    VALUES ('job_1', 'ours', 'file_1', '{}', 0, 'queued', 'bfloat16', '{"step": 1}');
    """
    upgrade_rows(settings, empty, "0270", rows)
    command = [sys.executable, "-m", "migrations", "back", "0260"]
    environment = {**os.environ, "SEFT_DATABASE_URL": str(settings.database_url)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    message = "job_1 has a saved state in bfloat16. Start the service again. Then let such jobs end, or cancel them.\n"
    assert (ended.returncode, ended.stderr) == (1, message)
    with empty.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET status = 'cancelled', finished_at = now()")
    downgrade(settings, "0260")


def test_older_software_does_not_count_outages_as_tries_of_an_import(settings: Settings, empty: Engine) -> None:
    rows = """
    INSERT INTO imports (id, tenant, name, state, skip_percentage, tries, outages)
    VALUES ('imp_1', 'ours', 'a', 'ready', 0, 7, 6), ('imp_2', 'ours', 'b', 'ready', 0, 2, 0);
    """
    upgrade_rows(settings, empty, "0272", rows)
    downgrade(settings, "0271")
    with empty.connect() as connection:
        found = connection.exec_driver_sql("SELECT id, tries FROM imports ORDER BY id").all()
    assert found == [("imp_1", 1), ("imp_2", 2)]


def test_upgraded_jobs_are_found_by_their_metadata(settings: Settings, empty: Engine) -> None:
    rows = """
    INSERT INTO jobs (id, tenant, dataset_id, spec, priority, status)
    VALUES ('job_1', 'ours', 'file_1', '{"model": "x", "metadata": {"ä": "b=c", "team": "a"}}', 0, 'succeeded'),
           ('job_2', 'ours', 'file_1', '{"model": "x", "metadata": {"team": "b"}}', 0, 'succeeded');
    """
    upgrade_rows(settings, empty, "0100", rows)
    with make_sessions(empty).begin() as session:
        for metadata in ({"ä": "b=c"}, {"ä": "b=c", "team": "a"}):
            page, _ = jobs.page(session, "ours", metadata=metadata.items(), limit=10)
            assert [job.id for job in page] == ["job_1"]


def test_upgraded_checkpoints_are_counted(settings: Settings, empty: Engine) -> None:
    rows = """
    INSERT INTO jobs (id, tenant, dataset_id, spec, priority, status)
    VALUES ('job_1', 'ours', 'file_1', '{}', 0, 'succeeded'), ('job_2', 'theirs', 'file_1', '{}', 0, 'succeeded');
    INSERT INTO checkpoints (id, job_id, attempt, step, prefix, sha256, files, bytes, scores)
    SELECT 'ckpt_' || n, 'job_' || 1 + mod(n, 2), 1, 1, '', '', '[]', n, '{}' FROM generate_series(1, 4) AS n;
    """
    upgrade_rows(settings, empty, "0210", rows)
    with make_sessions(empty).begin() as session:
        assert [fairness.stored_bytes(session, tenant).checkpoints for tenant in ("ours", "theirs", "nobody")] == [
            6,
            4,
            0,
        ]
        session.execute(text("DELETE FROM checkpoints WHERE id IN ('ckpt_1', 'ckpt_2')"))
        assert [fairness.stored_bytes(session, tenant).checkpoints for tenant in ("ours", "theirs")] == [4, 3]


def test_metrics_keys_that_tenants_created_are_revoked(settings: Settings, empty: Engine) -> None:
    rows = """
    INSERT INTO api_keys (id, tenant, name, scope, sha256)
    VALUES ('key_1', 'ours', 'x', 'metrics', '1'), ('key_2', 'ours', 'x', 'admin', '2'),
           ('key_3', 'operator', 'x', 'metrics', '3');
    INSERT INTO audit_log (tenant, key_id, request_id, action, target)
    VALUES ('ours', 'key_2', 'req_1', 'create_key', 'key_1'), ('ours', 'key_2', 'req_1', 'create_key', 'key_2');
    """
    upgrade_rows(settings, empty, "0251", rows)
    with empty.connect() as connection:
        revoked = "SELECT id FROM api_keys WHERE revoked_at IS NOT NULL"
        assert connection.exec_driver_sql(revoked).scalars().all() == ["key_1"]


def test_a_migration_that_waits_for_a_table_does_not_block_others(settings: Settings, empty: Engine) -> None:
    upgrade(settings, "0101")
    waiting, read = "SELECT 1 FROM pg_locks WHERE NOT granted", "SELECT count(*) FROM jobs"
    with ThreadPoolExecutor() as pool, empty.connect() as reader, empty.connect() as other:
        reader.exec_driver_sql(read)
        done = pool.submit(upgrade, settings)
        wait_for(lambda: other.exec_driver_sql(waiting).scalar())
        other.exec_driver_sql("SET statement_timeout = '20s'")
        assert other.exec_driver_sql(read).scalar() == 0, "it waited behind the migration"
        assert not done.done()
        for connection in (other, reader):
            connection.rollback()
        done.result(60)
