"""Every end of a command of the library has its exit code and one line, without a traceback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seft import cli, errors
from seft.errors import NO_DEVICE_MEMORY, NO_HOST_MEMORY, ConfigError, SeftError, SourceError
from seft.exit_codes import SIGNALS, Exit, exit_of, report_error, stoppable
from seft.models.hub_files import NOT_FOUND, UNREACHABLE

FAILURES = {
    errors.BitsDifferError,
    errors.EvaluateError,
    errors.PruneError,
    errors.TrainError,
    errors.VerifierKilledError,
    errors.VerifyError,
}
"""Errors of a command whose input was valid."""
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SeftError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_invalid_input_and_a_failure_have_different_exit_codes(kind: type[SeftError]) -> None:
    assert exit_of(kind.__new__(kind)) == (Exit.FAILED if kind in FAILURES else Exit.USAGE)


def test_a_hub_that_does_not_answer_has_its_own_exit_code() -> None:
    assert exit_of(SourceError(UNREACHABLE, "")) == Exit.UNREACHABLE
    assert exit_of(SourceError(NOT_FOUND, "")) == Exit.USAGE


def test_a_signal_has_the_exit_code_of_the_table() -> None:
    assert {int(code) for code in Exit if code > 128} == {128 + number for number in SIGNALS}
    for number in SIGNALS:
        before = signal.signal(number, signal.default_int_handler)
        with stoppable() as codes, pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.signal(number, before)
        assert codes == [128 + number]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines"),
        *(RuntimeError(f"{part}\nmore lines") for part in NO_DEVICE_MEMORY),
        RuntimeError(f"[enforce fail at alloc_cpu.cpp:118] . {NO_HOST_MEMORY}: you tried to allocate 9 bytes."),
    ],
)
def test_a_full_memory_ends_with_advice_and_without_a_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_error(error, "seft repair", as_json=True) == Exit.FAILED
    out, line = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "out_of_memory"
    assert line.startswith("error: `seft repair` must fit the memory: ")
    assert line.endswith("--micro-batch 1 and --activation-checkpointing.\n")
    assert line.count("\n") == 1


def test_only_a_full_disk_gets_the_advice_to_free_space(capsys: pytest.CaptureFixture[str]) -> None:
    for number, advised in ((28, True), (27, False)):
        assert report_error(OSError(number, os.strerror(number)), "seft prune", as_json=False) == Exit.FAILED
        assert ("Free some space" in capsys.readouterr().err) == advised


def seft(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `seft WORDS` in a process of its own."""
    command = [sys.executable, "-m", "seft", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_result_that_cannot_be_written_is_one_line_and_an_exit_code(more: list[str], tiny_folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = seft("inspect", str(tiny_folder), *more, stdout=full)
    assert (ended.returncode, ended.stderr.count("\n")) == (Exit.FAILED, 1), ended.stderr
    assert ended.stderr.startswith("error: files must be readable and writable: [Errno 28]")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_result_is_written_in_every_encoding(more: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "模型").symlink_to(tiny_folder)
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    ended = seft("pack", str(folder), str(tmp_path / "模.seft"), *more, stdout=subprocess.PIPE, env=environment)
    assert ended.returncode == Exit.DONE, ended.stderr
    assert "\\u6a21.seft" in ended.stdout


def test_an_error_of_a_command_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    for error, code in (
        (errors.EvaluateError("a"), Exit.FAILED),
        (ConfigError("a", "b", 1, "c"), Exit.USAGE),
        (SourceError(UNREACHABLE, "a"), Exit.UNREACHABLE),
    ):

        def fail(*_: object, raised: Exception = error) -> None:
            raise raised

        monkeypatch.setattr("seft.checkpoint.folder.inspect", fail)
        assert cli.main(["inspect", str(tiny_folder)]) == code
        assert capsys.readouterr().err == f"error: {error}\n"


def test_an_error_is_printed_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["inspect", str(tmp_path / "none"), "--json"]) == Exit.USAGE
    data = json.loads(capsys.readouterr().out)
    assert data["error"]["code"] == "invalid_config"
    assert "Check the path" in data["error"]["message"]
