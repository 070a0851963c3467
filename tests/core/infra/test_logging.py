"""Log lines are one JSON object each, whoever writes them; and nothing says a secret."""

import json
import os
import subprocess
import sys

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from core.settings import Settings
from tests.core.conftest import Sessions

SPEAK = """
import logging, structlog, warnings
from core.infra.logging import configure
from core.settings import Settings
configure(Settings())
with structlog.contextvars.bound_contextvars(job_id="job_1", attempt=2):
    structlog.get_logger("ours").info("saved", step=7)
    logging.getLogger("theirs").warning("old %s", "way")
    warnings.warn("mind")
    try:
        1 / 0
    except ZeroDivisionError:
        structlog.get_logger("ours").exception("broken")
"""


def test_every_line_is_one_object_with_what_is_bound() -> None:
    values = {
        "SEFT_DATABASE_URL": "postgresql://u:p@h/x",
        "SEFT_BROKER_URL": "redis://h/0",
        "SEFT_S3_ENDPOINT": "http://h",
        "SEFT_S3_ACCESS_KEY": "a",
        "SEFT_S3_SECRET_KEY": "hush",
    }
    said = subprocess.run(
        [sys.executable, "-c", SPEAK], env={**os.environ, **values}, check=True, capture_output=True, text=True
    ).stderr
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["event"] for line in lines] == ["saved", "old way", lines[2]["event"], "broken"]
    assert "UserWarning: mind" in lines[2]["event"]
    assert all((line["job_id"], line["attempt"]) == ("job_1", 2) for line in lines)
    assert (lines[0]["step"], lines[0]["logger"], lines[0]["level"]) == (7, "ours", "info")
    assert "ZeroDivisionError" in lines[3]["exception"]
    assert "hush" not in said


def test_a_wrong_setting_is_named_and_no_secret_is_repeated() -> None:
    given = {"broker_url": "redis://:hush@h/0", "s3_secret_key": "hush", "lease_seconds": 1}
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(given)
    assert "database_url" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_lease_outlives_three_heartbeats(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="three times heartbeat_seconds"):
        Settings.model_validate({**settings.model_dump(), "lease_seconds": 10, "heartbeat_seconds": 5})


def test_an_error_of_the_database_does_not_repeat_what_a_tenant_said(sessions: Sessions) -> None:
    with pytest.raises(ProgrammingError) as caught, sessions.begin() as session:
        session.execute(text("SELECT 1 FROM nothing WHERE word = :word"), {"word": "confidential"})
    assert "confidential" not in str(caught.value)
