"""Every log line is one JSON object, also those of libraries, and no log line has a secret."""

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

PROGRAM = """
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


def test_every_line_is_one_object_with_the_bound_values() -> None:
    values = {
        "SEFT_DATABASE_URL": "postgresql://u:p@h/x",
        "SEFT_BROKER_URL": "redis://h/0",
        "SEFT_S3_ENDPOINT": "http://h",
        "SEFT_S3_ACCESS_KEY": "a",
        "SEFT_S3_SECRET_KEY": "hush",
    }
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **values}, check=True, capture_output=True, text=True
    ).stderr
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["event"] for line in lines] == ["saved", "old way", lines[2]["event"], "broken"]
    assert "UserWarning: mind" in lines[2]["event"]
    assert all((line["job_id"], line["attempt"]) == ("job_1", 2) for line in lines)
    assert (lines[0]["step"], lines[0]["logger"], lines[0]["level"]) == (7, "ours", "info")
    assert "ZeroDivisionError" in lines[3]["exception"]
    assert "hush" not in output


def test_an_invalid_setting_is_named_and_no_secret_is_shown() -> None:
    values = {"broker_url": "redis://:hush@h/0", "s3_secret_key": "hush", "lease_seconds": 1}
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    assert "database_url" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_lease_lasts_at_least_three_heartbeats(settings: Settings) -> None:
    with pytest.raises(ValidationError, match="three times SEFT_HEARTBEAT_SECONDS"):
        Settings.model_validate({**settings.model_dump(), "lease_seconds": 10, "heartbeat_seconds": 5})


def test_a_database_error_does_not_show_the_parameters(sessions: Sessions) -> None:
    with pytest.raises(ProgrammingError) as caught, sessions.begin() as session:
        session.execute(text("SELECT 1 FROM nothing WHERE word = :word"), {"word": "confidential"})
    assert "confidential" not in str(caught.value)
