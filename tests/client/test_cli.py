"""The words of the command line."""

from pathlib import Path

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from client.answers import Json
from client.cli import app, assign


def test_a_setting_reaches_any_depth_and_is_json_or_a_word() -> None:
    spec: Json = {"sparsity": 0.6}
    for setting in ("repair.steps=100", "prune.method=wanda", "prune.calibration.samples=8", 'metadata={"a": "b"}'):
        assign(spec, setting)
    assert spec == {
        "sparsity": 0.6,
        "repair": {"steps": 100},
        "prune": {"method": "wanda", "calibration": {"samples": 8}},
        "metadata": {"a": "b"},
    }


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(BadParameter, match=r"repair\.steps=100"):
        assign({}, "repair.steps")


def test_a_missing_file_is_told_in_the_commands_words() -> None:
    result = CliRunner().invoke(app, ["datasets", "upload", "nothing.jsonl"])
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_a_missing_address_is_one_clear_line(tmp_path: Path) -> None:
    nothing = {"SEFT_URL": "", "SEFT_API_KEY": "", "XDG_CONFIG_HOME": str(tmp_path)}
    result = CliRunner().invoke(app, ["jobs", "list"], env=nothing)
    assert result.exit_code == 2
    assert result.stderr == "SEFT_URL is not set. Run `seft login`, or set it as `make up` prints it.\n"
