"""Tasks of lm-evaluation-harness, from local files alone: the same accuracy as our own multiple choice."""

import json
from pathlib import Path

import pytest

from seft.choices import Question, accuracy
from seft.cli import main
from seft.errors import ConfigError, EvaluateError
from seft.harness import run_task
from tests.tiny import tiny_texts, tiny_tokenizer, untrained_tiny

TASK = """
task: our_own
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of our own beside its data, and a cache that holds nothing."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    words = [text.split() for text in tiny_texts()[:24]]
    records = [
        {"prompt": " ".join(of[:9]), "choices": [of[9], " ".join(of[20:24]), " ".join(of[9:12])], "answer": place % 3}
        for place, of in enumerate(words)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (tmp_path / "our_own.yaml").write_text(TASK.replace("FILE", str(tmp_path / "questions.jsonl")))
    return tmp_path


def test_it_agrees_with_our_own_accuracies(folder: Path) -> None:
    lines = (folder / "questions.jsonl").read_text().splitlines()
    ours = accuracy(untrained_tiny(), tiny_tokenizer(), [Question(**json.loads(line)) for line in lines])
    found = run_task(untrained_tiny(), tiny_tokenizer(), "our_own", folder)
    assert 0 < ours.accuracy < 1
    assert ours.accuracy != ours.accuracy_per_byte
    assert found["acc,none"] == pytest.approx(ours.accuracy)
    assert found["acc_norm,none"] == pytest.approx(ours.accuracy_per_byte)


def test_a_shell_runs_it_too(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluate", tiny_folder, "--task", "our_own", "--tasks", folder, "--json"]
    assert main([str(argument) for argument in asked]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["acc,none"] <= 1


def test_a_task_that_nobody_knows_and_data_that_cannot_be_had_are_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="task must be one of"):
        run_task(untrained_tiny(), tiny_tokenizer(), "no such task", folder)
    (folder / "our_own.yaml").write_text(TASK.replace("FILE", "nothing.jsonl"))
    with pytest.raises(EvaluateError, match="our_own could not be run"):
        run_task(untrained_tiny(), tiny_tokenizer(), "our_own", folder)
