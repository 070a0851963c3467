"""A variable that is malformed is one line in every command, and lists can be written plainly."""

import base64
import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from ipaddress import ip_network
from pathlib import Path

import minisign
import pytest
from pydantic import ValidationError

from core.settings import INVALID, Settings, flaws

VALID = {
    "SEFT_DATABASE_URL": "postgresql://seft:hidden@127.0.0.1:1/seft",
    "SEFT_BROKER_URL": "redis://:hidden@127.0.0.1:1/0",
    "SEFT_S3_ENDPOINT": "http://127.0.0.1:1",
    "SEFT_S3_ACCESS_KEY": "hidden",
    "SEFT_S3_SECRET_KEY": "hidden",
}
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("SEFT_")}
COMMANDS = {
    "api": ("api", "api keys create --name me", "api hub-tokens encrypt", "api bucket save folder"),
    "migrations": ("migrations", "migrations back 0271"),
    "worker": ("worker", "worker health"),
    "seft": ("seft doctor",),
    "local": ("local up", "local run", "local demo"),
}
RUN = """
import json, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

ended = []
for words in json.loads(sys.argv[1]):
    sys.argv, code = words, None
    with redirect_stdout(StringIO()) as output, redirect_stderr(output):
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    ended.append((code, output.getvalue()))
json.dump(ended, sys.stdout)
"""
"""Runs commands of one program, because its imports take the most time. Writes the status and the output of each."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in os.environ.keys() - CLEAN.keys():
        monkeypatch.delenv(name)
    for name, value in VALID.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def errors() -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Settings()
    return flaws(Settings, caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("API_PORT", "80x", "SEFT_API_PORT: *valid integer, *; it is '80x'. Example: SEFT_API_PORT=8000"),
        ("API_PORT", "0", "*greater than or equal to 1; it is '0'. Example: SEFT_API_PORT=8000"),
        ("LOG_FORMAT", "xml", "SEFT_LOG_FORMAT: *'json' or 'console'; it is 'xml'. Example: SEFT_LOG_FORMAT=json"),
        ("DEVICE", "gpu", "SEFT_DEVICE: *; it is 'gpu'. Example: SEFT_DEVICE=cuda:1"),
        ("S3_ENDPOINT", "storage:9000", "*; it is 'storage:9000'. Example: SEFT_S3_ENDPOINT=http://127.0.0.1:8333"),
        ("MODEL_ROOTS", "[/models", "*_ROOTS: must be JSON (*); it is '[[]/models'. Example: *=/models:/more/models"),
        ("WEBHOOK_NETWORKS", "::/0,10.0.0.1/8", "SEFT_WEBHOOK_NETWORKS (entry 1): *; it is '10.0.0.1/8'. Example: *"),
        (
            "DATASET_BUCKETS",
            "a-b,s3://inbox",
            "*_BUCKETS (entry 1): *; it is 's3://inbox'. Example: *=inbox,shared/texts",
        ),
        ("TENANT_WEIGHTS", "acme", "SEFT_TENANT_WEIGHTS: must be JSON (*); it is 'acme'. Example: *={\"acme\": 2}"),
        ("TENANT_WEIGHTS", '{"a": 0}', "SEFT_TENANT_WEIGHTS (entry 'a'): *0.01; it is 0. Example: *"),
        ("LEASE_SECONDS", "1", "SEFT_LEASE_SECONDS (1.0) must be at least three times SEFT_HEARTBEAT_SECONDS (3.0)*"),
        ("LINK_SECONDS", "604801", "SEFT_LINK_SECONDS: *less than or equal to 604800; it is '604801'. Example: *"),
        ("SWEEP_SECONDS", "inf", "SEFT_SWEEP_SECONDS: *finite number; it is 'inf'. Example: SEFT_SWEEP_SECONDS=10"),
        (
            "DATABASE_URL",
            "postgresql://a@b,c:5432/seft",
            "SEFT_DATABASE_URL: must name one host. *; it is '*'. Example: *",
        ),
        ("S3_SECRET_KEY", "", "SEFT_S3_SECRET_KEY must be set; it is not. Secret key of the object storage."),
    ],
)
def test_an_error_is_one_line_with_the_variable_the_rule_the_value_and_an_example(
    environment: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    environment.setenv(f"SEFT_{name}", value)
    (line,) = errors()
    assert fnmatchcase(line, expected), line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("DATABASE_URL", "postgre://seft:s3cret@db:5432/seft?password=s3cret", "'postgre://…@db:5432/seft'"),
        ("DATABASE_URL", "postgresql://seft:s3c@ret@db:x/seft", "'postgresql://…@db:x/seft'"),
        ("DATABASE_URL", "postgresql://seft:s3cret@db,seft:s3cret@db:5432/seft", "'postgresql://…@db:5432/seft'"),
        ("DATABASE_URL", "s3cret", "not shown, because it may contain a password"),
        ("SERVICE_DATABASE_URL", "//seft:s3cret@db", "not shown"),
        ("BROKER_URL", "redis://:s3cret@db:99999", "'redis://…@db:99999'"),
        ("SECRET_KEY", "s3cret", "not shown, because it is a secret"),
        ("OLD_SECRET_KEYS", "s3cret,s3cret", "not shown, because it is a secret"),
        ("OLD_SECRET_KEYS", '["s3cret"', "not shown, because it is a secret"),
    ],
)
def test_an_error_shows_no_secret(environment: pytest.MonkeyPatch, name: str, value: str, shown: str) -> None:
    environment.setenv(f"SEFT_{name}", value)
    for line in errors():
        assert line.startswith(f"SEFT_{name}")
        assert f"; it is {shown}" in line
        assert "s3c" not in line


def test_all_invalid_variables_are_named_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SEFT_SECRET_KEY", "too short")
    environment.setenv("SEFT_API_PORT", "x")
    assert [line.partition(":")[0] for line in errors()] == ["SEFT_SECRET_KEY", "SEFT_API_PORT"]
    assert "at least 32 characters, not 9" in errors()[0]


@pytest.mark.parametrize(
    ("value", "folders"),
    [
        ("/models", ["/models"]),
        ("/models:/more", ["/models", "/more"]),
        ("/models, /more", ["/models", "/more"]),
        ('["/models", "/with:colon"]', ["/models", "/with:colon"]),
        ("[]", []),
        ("", []),
    ],
)
def test_folders_are_a_path_several_paths_or_a_json_list(
    environment: pytest.MonkeyPatch, value: str, folders: list[str]
) -> None:
    environment.setenv("SEFT_MODEL_ROOTS", value)
    assert Settings().model_roots == [Path(folder) for folder in folders]


def test_other_lists_are_entries_with_commas_or_json(environment: pytest.MonkeyPatch) -> None:
    old = ("a" * 32, "b" * 32)
    environment.setenv("SEFT_WEBHOOK_NETWORKS", "10.1.0.0/16,fd00::/8")
    environment.setenv("SEFT_DATASET_BUCKETS", '["inbox", "shared/texts"]')
    environment.setenv("SEFT_OLD_SECRET_KEYS", ",".join(old))
    settings = Settings()
    assert settings.webhook_networks == [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]
    assert settings.dataset_buckets == ["inbox", "shared/texts"]
    assert tuple(key.get_secret_value() for key in settings.old_secret_keys) == old


def test_a_signing_key_is_one_of_minisign_without_a_password(environment: pytest.MonkeyPatch) -> None:
    key = minisign.KeyPair.generate().secret_key
    environment.setenv("SEFT_SIGNING_KEY", key.to_base64().decode())
    settings = Settings()
    assert settings.signing_key
    damaged = bytearray(base64.b64decode(key.to_base64()))
    damaged[70] ^= 1
    key.encrypt("password")
    for value, rule in (
        (base64.b64encode(damaged).decode(), "verification failed"),
        (key.to_base64().decode(), "without a password"),
        ("hidden", "must be the last line of a secret"),
    ):
        environment.setenv("SEFT_SIGNING_KEY", value)
        (line,) = errors()
        assert line.startswith("SEFT_SIGNING_KEY")
        assert rule in line
        assert value not in line


@pytest.mark.parametrize("program", COMMANDS)
def test_every_command_ends_with_lines_about_the_variables_and_status_2(program: str, tmp_path: Path) -> None:
    wrong = {"SEFT_SERVICE_DATABASE_URL": "postgre://seft:s3cret@db/seft"}
    folder = ("--folder", str(tmp_path)) if program == "local" else ()
    commands = json.dumps([[*command.split(), *folder] for command in COMMANDS[program]])
    process = subprocess.run(
        [sys.executable, "-c", RUN, commands],
        env={**CLEAN, **VALID, **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    for command, (status, output) in zip(COMMANDS[program], json.loads(process.stdout), strict=True):
        assert status == INVALID, (command, output)
        assert "SEFT_SERVICE_DATABASE_URL: URL scheme should be" in output, command
        assert "; it is 'postgre://…@db/seft'. Example: " in output
        assert "s3cret" not in output
        assert "Traceback" not in output
        assert len(output.splitlines()) <= 2
