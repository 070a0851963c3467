"""Arguments of benchmarks: a wrong one ends the program before it measures, with one line that says what is allowed."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import devices, pruning, scaling, scaling_check, step

MODEL = ("--model", "random:tiny")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (step, (*MODEL, "--out", "{out}", "--shapes", "2y8"), "must be windows x tokens, such as 2x512; it is '2y8'"),
        (step, (*MODEL, "--out", "{out}", "--shapes", "0x8"), "must be windows x tokens, such as 2x512; it is '0x8'"),
        (step, (*MODEL, "--out", "{out}", "--rounds", "0"), "must be a whole number above 0; it is '0'"),
        (
            step,
            (*MODEL, "--out", "{out}", "--dtype", "int8"),
            "must be one of float32, bfloat16, float16; it is 'int8'",
        ),
        (step, (*MODEL, "--out", "{out}", "--densities", "2"), "must be a number above 0 and at most 1; it is '2'"),
        (step, (*MODEL, "--out", "{out}", "--densities", "x"), "must be a number above 0 and at most 1; it is 'x'"),
        (step, (*MODEL, "--out", "{out}", "--sides"), "expected at least one argument"),
        (step, (*MODEL, "--out", "/proc/x.json"), "must be a file that can be written; it is '/proc/x.json'"),
        (devices, ("--model", "m", "--data", "d", "--out", "{out}", "--steps", "2"), "--steps must be more than 2"),
        (pruning, (*MODEL, "--rounds", "1"), "--rounds needs the names of experiments"),
        (pruning, (*MODEL, "--rounds", "1", "dense"), "--rounds needs the names of experiments"),
        (pruning, ("--model", "m", "--calibration", "c", "--test", "t", pruning.PLAIN), "columns can only be timed"),
        (pruning, (*MODEL, "--rounds", "1", "wanda"), "'wanda' is no experiment; they are dense,"),
        (pruning, (*MODEL, "--calibration", "c", "--test", "t"), "random:tiny can only be timed"),
        (pruning, ("--model", "m"), "--calibration and --test must be given"),
        (scaling, ("--all",), "unrecognized arguments"),
        (scaling_check, ("--all",), "unrecognized arguments"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_at_the_start(
    *,
    module: ModuleType,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "folder" / "out.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", *(each.format(out=out) for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_results_of_another_model_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = {"model": "one", "calibration": "c", "test": "t"}
    pruning._save(tmp_path / "out.json", {**setting, "cells": {"dense": {}}})
    assert pruning._saved(tmp_path / "out.json", setting) == {"dense": {}}
    with pytest.raises(SystemExit, match="has results of another model"):
        pruning._saved(tmp_path / "out.json", {**setting, "model": "two"})
