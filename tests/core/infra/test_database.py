"""How the engine handles errors of the server, and which numbers locks have."""

import pytest
from sqlalchemy import cast, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import OperationalError

from core.infra.database import Lock, lock, make_engine, try_lock
from core.settings import Settings
from tests.core.conftest import Sessions


def test_a_server_that_has_become_read_only_counts_as_disconnected(settings: Settings) -> None:
    engine = make_engine(settings)
    with engine.connect() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(OperationalError, match="read-only"):
            connection.execute(text("DELETE FROM jobs"))
        assert connection.invalidated
    engine.dispose()


def test_characters_that_postgres_rejects_are_replaced_in_json(settings: Settings) -> None:
    engine = make_engine(settings)
    value = {"a\0": ["b\0", ("\ud800", {"\udfff": "\0"})], "whole": "\N{GRINNING FACE} \\u0000", "number": 1.5}
    with engine.connect() as connection:
        stored = connection.scalar(select(cast(value, JSONB)))
    engine.dispose()
    mark = "\N{REPLACEMENT CHARACTER}"
    assert stored == {f"a{mark}": [f"b{mark}", [mark, {mark: mark}]], "whole": value["whole"], "number": 1.5}


NUMBERS: list[tuple[Lock | str, str]] = [
    (Lock.SWEEP, "24311"),
    (Lock.MIGRATION, "388977"),
    (Lock.JOB_CLAIM, "388978"),
    (Lock.IMPORT_CLAIM, "388979"),
    (Lock.PUSH_CLAIM, "388980"),
    (Lock.GRANT, "388981"),
    ("bytes of ours", "hashtextextended('bytes of ours', 0)"),
]


@pytest.mark.parametrize(("what", "number"), NUMBERS)
def test_a_lock_has_the_number_that_other_versions_use(sessions: Sessions, what: Lock | str, number: str) -> None:
    take = text(f"SELECT pg_try_advisory_xact_lock({number})")
    with sessions.begin() as session, sessions.begin() as other:
        lock(session, what)
        assert not other.scalar(take)
        assert not try_lock(other, what)
        session.commit()
        assert other.scalar(take)
        assert try_lock(other, what)
