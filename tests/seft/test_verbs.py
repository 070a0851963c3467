"""The commands reject what does not fit a model before they read its weights, and lower default lengths to fit it.

A score that is not finite is an error.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from seft import stages, verbs
from seft.checkpoint.facts import Record
from seft.cli import main
from seft.exit_codes import Exit
from tests.hollow import write_hollow
from tests.tiny import tiny_tokenizer, untrained_tiny

CONTEXT = 256


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_hollow(tmp_path / "model", max_position_embeddings=CONTEXT)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a b"}\n')
    return path


def error_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def copy_with_context(folder: Path, copy: Path, tokens: int) -> Path:
    """Copy a model with a context of 512 tokens. The copy has a context of `tokens`."""
    copy.mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        if file.name == "config.json":
            content = content.replace(b'"max_position_embeddings": 512', b'"max_position_embeddings": %d' % tokens)
        (copy / file.name).write_bytes(content)
    return copy


LONG = f"must be at most {CONTEXT}, the context length of the model; it is 8192"
PRUNE = ["prune", "--calibration", "TEXT", "--out", "OUT"]
COMPRESS = ["compress", "--data", "TEXT", "--out", "OUT", "--sparsity", "0.5"]
UNFIT = [
    ([*PRUNE, "--sparsity", "0.5", "--tokens", "8192"], f"--tokens {LONG}"),
    (
        [*PRUNE, "--pattern", "1:7"],
        "must have an M that divides the number of inputs of every linear layer, such as the 64",
    ),
    ([*PRUNE, "--sparsity", "0.9", "--sparsity-of", "model"], "--sparsity must be at most 0.86"),
    ([*COMPRESS, "--tokens", "8192"], f"--tokens {LONG}"),
    ([*COMPRESS, "--sequence-tokens", "8192"], f"--sequence-tokens {LONG}"),
    ([*COMPRESS, "--repair-method", "spp", "--density", "1e-6"], "must give at least one linear layer rank 1 with spp"),
    ([*COMPRESS, "--repair-method", "lora_reprune", "--density", "1"], "a rank below both sides of its matrix"),
    (["evaluate", "--data", "TEXT", "--tokens", "8192"], f"--tokens {LONG}"),
]


@pytest.fixture
def _unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the weights of a model are loaded."""
    monkeypatch.setattr(verbs, "load", lambda *_, **__: pytest.fail("the weights must not be loaded"))


@pytest.fixture
def _unstarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model writes text or is pruned."""
    monkeypatch.setattr(stages, "retained_text", lambda *_: pytest.fail("no text must be written"))
    monkeypatch.setattr(stages, "prune_model", lambda *_, **__: pytest.fail("nothing must be pruned"))


@pytest.mark.usefixtures("_unread")
@pytest.mark.parametrize(("command", "message"), UNFIT, ids=lambda part: part[:40] if isinstance(part, str) else None)
def test_what_does_not_fit_is_rejected_before_the_weights_are_read(
    capsys: pytest.CaptureFixture[str], model: Path, text: Path, command: list[str], message: str
) -> None:
    paths = {"TEXT": text, "OUT": model.parent / "out"}
    verb, *options = (paths.get(word, word) for word in command)
    assert message in error_line(capsys, verb, model, *options)
    assert not (model.parent / "out").exists()


@pytest.mark.usefixtures("_unread")
def test_a_teacher_of_another_size_and_an_unknown_task_are_rejected_before_the_weights_are_read(
    capsys: pytest.CaptureFixture[str], model: Path, text: Path, tmp_path: Path
) -> None:
    command = ["repair", model, "--data", text, "--steps", "1", "--distill-weight", "0.5", "--out", tmp_path / "out"]
    other = write_hollow(tmp_path / "other", blocks=3)
    line = error_line(capsys, *command, "--teacher", other)
    assert "teacher must have the num_hidden_layers of the pruned model, 4; it has '3'" in line
    assert "task must be a task of" in error_line(
        capsys, "evaluate", model, "--task", "none", "--task-folder", tmp_path
    )


@pytest.mark.parametrize(("given", "recorded"), [([], CONTEXT), (["--tokens", "100"], 100)])
def test_a_default_length_is_lowered_to_the_context(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], recorded: int
) -> None:
    def publish(_: Any, __: Path, facts: Any, ___: Any) -> Record:
        assert facts.prune.tokens == recorded
        raise KeyboardInterrupt

    copy_with_context(tiny_folder, tmp_path / "short", CONTEXT)
    monkeypatch.setattr(stages, "publish", publish)
    (text := tmp_path / "text.txt").write_text("a class has a statement " * 200)
    command = ["prune", tmp_path / "short", "--sparsity", "0.5", "--method", "wanda", "--calibration", text]
    assert main([*map(str, [*command, "--samples", "1", "--out", tmp_path / "out"]), *given]) == 130


def test_a_score_that_is_not_finite_is_an_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = untrained_tiny(), tmp_path / "broken"
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e6)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    text.write_text('{"text": "a loss that is too large"}\n')
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", str(text), "--tokens", "8", "--json"]) == Exit.FAILED
    message = "perplexity must be finite; it is inf. Prune the model less, or use another model or text."
    assert json.loads(capsys.readouterr().out) == {"error": {"code": "evaluate_failed", "message": message}}

    monkeypatch.setattr("seft.harness.find_task", lambda *_: None)
    monkeypatch.setattr("seft.harness.run_task", lambda *_: {"acc,none": 0.5, "f1,none": math.nan})
    assert main(["evaluate", str(folder), "--task", "our_own"]) == Exit.FAILED
    assert "f1,none of our_own must be finite; it is nan." in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("_unstarted")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"TEXT": "a class"}, "training text: the text must have at least 64 tokens"),
        ({"JUDGED": "a class"}, "held-out text: the text must have at least 64 tokens"),
        ({"LENGTH": "4096"}, "calibration text: the text must have at least 4096 tokens"),
    ],
    ids=str,
)
def test_a_text_that_is_too_short_is_rejected_before_the_dense_model_writes_and_is_pruned(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    texts = {"TEXT": "a class has a statement " * 200, "JUDGED": "a statement has a class " * 200, **changed}
    data, judged = tmp_path / "data.txt", tmp_path / "judged.txt"
    data.write_text(texts["TEXT"])
    judged.write_text(texts["JUDGED"])
    folder = copy_with_context(tiny_folder, tmp_path / "model", 1 << 13)
    options = ["--sequence-tokens", 64, "--tokens", texts.get("LENGTH", 64), "--evaluate-interval", 1]
    command = ["compress", folder, "--data", data, "--held-out", judged, "--sparsity", "0.5", *options]
    assert message in error_line(capsys, *command, "--out", tmp_path / "out")
