"""A job whose model is pruned already: with the sparsity 0 it keeps the zeros and their pattern."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from seft.checkpoint.facts import Record
from seft.config import Pattern
from seft.errors import ConfigError
from tests.seft.prune.test_detect_zeros import prune_to
from tests.worker.test_pipeline import SPEC, Run, _restore_torch_settings  # noqa: F401
from worker.protocol import RESULT, Finished, Measured

KEEP: dict[str, Any] = {"sparsity": 0.0, "prune": {}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a model that another tool pruned to 2:4."""
    folder = tmp_path_factory.mktemp("pruned")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    prune_to(model, Pattern(2, 4))
    model.to(torch.bfloat16).save_pretrained(folder / "tiny")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder / "tiny")
    return folder


def linears(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(path / "model.safetensors").items() if "_proj" in name}


def run_of(folder: Path, models: Path, texts: list[str], **repair: object) -> Run:
    return Run(folder, models, texts[:20], **KEEP, repair=SPEC["repair"] | repair)


def test_a_job_that_trains_all_nonzeros_keeps_every_zero(tmp_path: Path, models: Path, tiny_texts: list[str]) -> None:
    run = run_of(tmp_path / "run", models, tiny_texts, density="all").run()
    before, after = linears(models / "tiny"), linears(run.folder / RESULT)
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before), "it was trained"
    result = run.messages[-1]
    assert isinstance(result, Finished)
    assert result.measured["linears"]["share"] == 0.5
    assert result.scores["dense"] == result.scores["pruned"]
    facts = Record.read(run.folder / RESULT).facts
    assert (facts.zeros_found, facts.prune.pattern, facts.prune.sparsity) == (True, Pattern(2, 4), 0.5)
    assert facts.calibration_sha256 is None
    card = (run.folder / RESULT / "README.md").read_text()
    assert "set to zero by another tool (2:4), then repaired in 8 steps" in card
    assert "The model had 50.00%." in card
    assert "prune method" not in card


def test_a_job_that_moves_zeros_keeps_the_pattern_also_if_it_is_resumed(
    tmp_path: Path, models: Path, tiny_texts: list[str]
) -> None:
    whole = run_of(tmp_path / "whole", models, tiny_texts).run()
    result = whole.messages[-1]
    assert isinstance(result, Finished)
    assert result.measured["grown_zeros"] > 0
    for tensor in linears(whole.folder / RESULT).values():
        assert ((tensor != 0).view(-1, 4).sum(1) <= 2).all()
    killed = run_of(tmp_path / "killed", models, tiny_texts).run_until(3)
    resumed = run_of(tmp_path / "resumed", models, tiny_texts).resume_from(killed, 3).run()
    assert resumed.manifest() == whole.manifest()


@pytest.mark.parametrize("method", ["seft", "lora_reprune"])
def test_a_dense_model_is_rejected_before_it_is_trained(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str], method: str
) -> None:
    run = Run(tmp_path / "run", tiny_folder.parent, tiny_texts[:20], **KEEP, repair=SPEC["repair"] | {"method": method})
    with pytest.raises(ConfigError, match="must be above 0 for a model with less than 1% zeros"):
        run.run()
    assert not run.of_type(Measured)
