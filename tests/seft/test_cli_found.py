"""The command line repairs models that other tools pruned, and no dense models."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from seft.checkpoint import sparsity
from seft.checkpoint.facts import Record
from tests.seft.repair.repairing import zero_smallest
from tests.seft.test_cli import TRAINING, error_line, run

FLOAT32 = ("--dtype", "float32")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "pruned"
    assert run("prune", tiny_folder, "--sparsity", "0.6", "--method", "magnitude", "--out", out) == 0
    return out


def test_a_model_that_another_tool_pruned_is_repaired_and_told_what_was_found(
    capsys: pytest.CaptureFixture[str], pruned: Path, texts: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(pruned, tmp_path / "other"))
    for name in ("sparsity.json", "manifest.json", "README.md"):
        (other / name).unlink()
    before = sparsity.of_folder(other)
    assert run("repair", other, "--data", texts, *TRAINING, "--out", tmp_path / "out") == 0
    found = re.findall(
        r"found (\S+) zeros in the 28 linear layers, from .* of one; no N:M pattern", capsys.readouterr().err
    )
    assert found == [f"{before.linears.share:.2%}"]
    record = Record.read(tmp_path / "out")
    assert record.sparsity == before
    assert (record.facts.zeros_found, record.facts.prune.sparsity) == (True, before.linears.share)
    assert run("inspect", tmp_path / "out") == 0
    assert "other, pruned to 60% by another tool (unstructured)" in capsys.readouterr().out


def test_a_float32_model_that_another_tool_pruned_gives_the_same_bytes_with_every_command_and_again(
    tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    zero_smallest(model)
    for parameter in model.parameters():
        parameter.data *= 1 + 2**-12  # not a number in bfloat16
    other, sparse = Path(shutil.copytree(tiny_folder, tmp_path / "other")), tmp_path / "sparse"
    model.save_pretrained(other)
    repair, keep = ("--data", texts, *TRAINING, "--retain", "none", *FLOAT32), ("--sparsity", "0")
    assert run("prune", other, *keep, *FLOAT32, "--out", sparse) == 0
    outputs = [tmp_path / str(number) for number in range(4)]
    assert run("compress", other, *keep, *repair, "--out", outputs[0]) == 0
    assert run("repair", sparse, *repair, "--out", outputs[1]) == 0
    assert run("repair", other, *repair, "--out", outputs[2]) == 0
    again = ("--model", other, "--data", texts, "--out", outputs[3])
    assert run("reproduce", outputs[0] / "sparsity.json", *again) == 0
    assert len({(output / "model.safetensors").read_bytes() for output in outputs}) == 1


def test_a_dense_model_is_not_repaired(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    line = error_line(capsys, "repair", tiny_folder, "--data", texts, *TRAINING, "--out", tmp_path / "out")
    assert "folder must have at least 1% zeros in its linear layers" in line
    assert "seft compress" in line


def test_the_zeros_of_a_dense_model_are_not_kept(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: Path, tmp_path: Path
) -> None:
    training = ("--data", texts, *TRAINING, "--repair-method", "lora_reprune", "--retain", "none")
    for command in (("prune", tiny_folder), ("compress", tiny_folder, *training)):
        line = error_line(capsys, *command, "--sparsity", "0", "--out", tmp_path / "out")
        assert "sparsity must be above 0 for a model with less than 1% zeros" in line


def test_a_pruned_model_does_not_write_text_in_place_of_the_dense_one(
    capsys: pytest.CaptureFixture[str], pruned: Path, texts: Path, tmp_path: Path
) -> None:
    command = ("compress", pruned, "--sparsity", "0", "--data", texts, *TRAINING)
    line = error_line(capsys, *command, "--out", tmp_path / "out")
    assert "retain must be none with the sparsity 0, because there is no dense model" in line


def test_a_repaired_model_is_not_repaired_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pruned: Path, texts: Path
) -> None:
    repaired = tmp_path / "repaired"
    assert run("repair", pruned, "--data", texts, *TRAINING, "--out", repaired) == 0
    line = error_line(capsys, "repair", repaired, "--data", texts, "--steps", "1", "--out", tmp_path / "out")
    assert "must be pruned and not repaired yet" in line
