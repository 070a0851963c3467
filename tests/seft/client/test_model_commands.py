"""Commands of `seft` about models and settings, with a running API, and what they ask before they delete."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import workers
from core.capability import CPU, Capability
from seft.client.shell import Exit
from tests.core.conftest import FLOPS
from tests.seft.client.conftest import Running, Shell, create


def test_models_are_listed_and_an_estimate_needs_no_dataset_and_suggests_what_fits(shell: Shell) -> None:
    with shell.service.sessions.begin() as session:
        workers.record_heartbeat(session, "w1", Capability(CPU, "x86_64", 4 << 30, 1 << 40))
    words = ("--model", "tiny", "--sparsity", "0.6")
    estimate = shell.json("estimate", *words)
    assert (estimate["fits"], estimate["checkpoint_bytes"]) == (True, 2 * estimate["parameters"])
    output = shell.run("estimate", *words).stdout
    assert f"{estimate['parameters']:,}" in output
    assert "w1" in output
    (listed,) = shell.json("models")
    assert (listed["id"], listed["parameters"]) == ("tiny", estimate["parameters"])
    assert shell.json("models", "tiny") == listed
    assert listed["fits_on"] == ["w1"]
    (worker,) = shell.json("workers")
    assert (worker["name"], worker["memory"]) == ("w1", 4 << 30)
    assert shell.run("workers").stdout.splitlines()[1].split()[:6] == ["w1", "idle", "cpu", "x86_64", "4.3", "GB"]
    with shell.service.sessions.begin() as session:
        workers.record_flops(session, "w1", FLOPS)
    (line,) = (line for line in shell.run("estimate", *words).stdout.splitlines() if line.startswith("w1"))
    assert " in float32; " in line
    assert re.search(r"about (\d+ s|\d+ min), roughly, from a short calibration of the device", line)
    for model_words in (["models"], ["models", "tiny"]):
        (row,) = shell.run(*model_words).stdout.splitlines()[1:]
        assert f"{listed['parameters']:,}" in row
        assert row.rstrip().endswith("w1")
    assert shell.run("models", "--revision", "main").exit_code == Exit.USAGE
    result = shell.run("models", "tiny", "--revision", "main")
    assert (result.exit_code, "Remove `revision`, or name a hub model." in result.stderr) == (Exit.REFUSED, True)
    too_much = ("--set", "repair.micro_batch=1024", "--set", "repair.batch_tokens=4194304")
    long = ("--set", "repair.sequence_tokens=4096")
    assert "--set repair.micro_batch=" in shell.run("estimate", *words, *too_much, *long).stdout
    split = ("--set", "devices=2", "--set", "sharded=true")
    change = shell.run("estimate", *words, *split).stdout.partition("fits with ")[2].split()
    assert shell.json("estimate", *words, *split, *change)["fits"], change


@pytest.fixture
def broken(running: Running) -> Iterator[Path]:
    """An empty folder next to the model."""
    (folder := running.models / "broken").mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_model_that_cannot_be_used_is_named_with_the_reason(shell: Shell, broken: Path) -> None:
    (broken / "config.json").write_text("{")
    result = shell.run("models")
    assert "tiny" in result.stdout
    assert re.search(r"broken cannot be used: .*config\.json", result.stderr)
    assert [model["id"] for model in shell.json("models")] == ["tiny"]


def test_settings_of_a_file_are_changed_by_options(shell: Shell, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps({"sparsity": 0.5, "repair": {"steps": 14, "density": 0.01}}))
    spec = create(shell, data, "--file", str(file), "--set", "repair.steps=20")["spec"]
    assert (spec["sparsity"], spec["repair"]["steps"], spec["repair"]["density"]) == (0.6, 20, 0.01)
    assert shell.json("estimate", "--model", "tiny", "--file", str(file))["steps"] == 14


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "must contain JSON"), ("[]", "must contain one JSON object")],
)
def test_a_wrong_file_of_settings_is_a_usage_error(
    shell: Shell, tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "cpu.json"
    if content is not None:
        file.write_text(content)
    result = shell.run("estimate", "--model", "tiny", "--file", str(file))
    assert result.exit_code == Exit.USAGE
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("kind", ["jobs", "datasets"])
def test_a_person_is_asked_before_something_is_deleted(
    shell: Shell, data: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = create(shell, data)
    shell.run("jobs", "cancel", job["id"])
    chosen = job["id"] if kind == "jobs" else shell.json("datasets", "upload", str(data))["id"]
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = shell.run(kind, "delete", chosen, typed="n")
    assert (result.exit_code, f"Delete {chosen}" in result.stderr) == (1, True)
    assert shell.run(kind, "delete", chosen, "--yes").stdout.rstrip() == f"{chosen}  deleted", "it was there"
