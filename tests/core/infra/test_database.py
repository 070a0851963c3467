"""How the engine handles errors of the server."""

import pytest
from sqlalchemy import text
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
