"""Tasks of lm-evaluation-harness from local files give the same accuracy as `seft.multiple_choice`."""

import json
from pathlib import Path

import pytest

from seft.cli import main
from seft.errors import ConfigError, EvaluateError
from seft.harness import find_task, run_task
from seft.multiple_choice import Question, accuracy
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
    """A folder with a task and its data, with an empty cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    words = [text.split() for text in tiny_texts()[:24]]
    records = [
        {
            "prompt": " ".join(parts[:9]),
            "choices": [parts[9], " ".join(parts[20:24]), " ".join(parts[9:12])],
            "answer": index % 3,
        }
        for index, parts in enumerate(words)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (tmp_path / "our_own.yaml").write_text(TASK.replace("FILE", str(tmp_path / "questions.jsonl")))
    return tmp_path


def test_it_agrees_with_the_accuracies_of_this_library(folder: Path) -> None:
    lines = (folder / "questions.jsonl").read_text().splitlines()
    ours = accuracy(untrained_tiny(), tiny_tokenizer(), [Question(**json.loads(line)) for line in lines])
    metrics = run_task(untrained_tiny(), tiny_tokenizer(), "our_own", find_task("our_own", folder))
    assert 0 < ours.accuracy < 1
    assert ours.accuracy != ours.accuracy_per_byte
    assert metrics["acc,none"] == pytest.approx(ours.accuracy)
    assert metrics["acc_norm,none"] == pytest.approx(ours.accuracy_per_byte)


def test_the_metrics_of_a_tag_name_its_tasks(folder: Path) -> None:
    task = folder / "our_own.yaml"
    task.write_text(f"{task.read_text()}tag: our_tag\n")
    metrics = run_task(untrained_tiny(), tiny_tokenizer(), "our_tag", find_task("our_tag", folder))
    assert {"our_own acc,none", "our_own acc_norm,none"} <= metrics.keys()


def test_the_command_line_runs_it(folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", tiny_folder, "--task", "our_own", "--task-folder", folder, "--json"]
    assert main([str(argument) for argument in command]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["metrics"]["acc,none"] <= 1


def test_an_unknown_task_and_missing_data_are_errors(folder: Path) -> None:
    with pytest.raises(ConfigError, match="task must be a task of"):
        find_task("no such task", folder)
    (folder / "our_own.yaml").write_text(TASK.replace("FILE", "nothing.jsonl"))
    with pytest.raises(EvaluateError, match="our_own failed"):
        run_task(untrained_tiny(), tiny_tokenizer(), "our_own", find_task("our_own", folder))
