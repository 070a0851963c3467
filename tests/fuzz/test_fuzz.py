"""A short fuzz run. `make fuzz` runs a long one."""

from pathlib import Path

from core.settings import Settings
from tests.fuzz.run import fuzz


def test_no_answer_violates_the_openapi_document(settings: Settings, tmp_path: Path) -> None:
    result = fuzz(settings, tmp_path, examples=3)
    assert not result.broken, result.output
    assert max(result.statuses) < 500
    assert {200, 202, 404, 405, 422} <= set(result.statuses)
    assert result.statuses.total() > 500
