"""How the engine handles errors of the server."""

import pytest
from sqlalchemy import cast, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import OperationalError

from core.infra.database import make_engine
from core.settings import Settings


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
