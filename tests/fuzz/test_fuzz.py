"""A short run of what `make fuzz` does at length."""

from pathlib import Path

from core.settings import Settings
from tests.fuzz.run import fuzz


def test_no_answer_breaks_a_promise_of_the_openapi(settings: Settings, tmp_path: Path) -> None:
    done = fuzz(settings, tmp_path, examples=3)
    assert not done.broken, done.output
    assert max(done.statuses) < 500
    assert {200, 202, 404, 405, 422} <= set(done.statuses)
    assert done.statuses.total() > 500
