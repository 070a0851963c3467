"""The number of unfinished imports of a tenant. `tests.api` has the rest of the imports."""

import pytest
from sqlalchemy.orm import Session

from core import ids
from core.datasets import imports
from core.states import ImportState
from core.tables import Import
from tests.core.conftest import Sessions, accepted


def test_concurrent_requests_cannot_exceed_the_limit_of_unfinished_imports(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(session: Session, _: int) -> None:
        imports.require_import_quota(session, "ours")
        row = {"name": "texts.jsonl", "state": ImportState.RECEIVING, "bytes": 10, "skip_percentage": 0.0}
        session.add(Import(id=ids.new("imp"), tenant="ours", **row))
        session.flush()

    monkeypatch.setattr(imports, "MAX_ACTIVE", 2)
    assert accepted(sessions, begin) == 2
