"""The commands reject what does not fit a model before they read its weights, and lower default lengths to fit it."""

from pathlib import Path
from typing import Any

import pytest

from seft import stages, verbs
from seft.checkpoint.facts import Record
from seft.cli import main
from tests.hollow import write_hollow

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


LONG = f"must be at most {CONTEXT}, the context length of the model; it is 8192"
PRUNE = ["prune", "--calibration", "TEXT", "--out", "OUT"]
COMPRESS = ["compress", "--data", "TEXT", "--out", "OUT", "--sparsity", "0.5"]
UNFIT = [
    ([*PRUNE, "--sparsity", "0.5", "--tokens", "8192"], f"tokens {LONG}"),
    ([*PRUNE, "--pattern", "1:7"], "must have groups that divide the inputs of every linear layer, such as the 64"),
    ([*PRUNE, "--sparsity", "0.9", "--sparsity-of", "model"], "sparsity must be at most 0.86"),
    ([*COMPRESS, "--tokens", "8192"], f"tokens {LONG}"),
    ([*COMPRESS, "--sequence-tokens", "8192"], f"sequence_tokens {LONG}"),
    ([*COMPRESS, "--repair-method", "spp", "--density", "1e-6"], "must give at least one linear layer rank 1 with spp"),
    ([*COMPRESS, "--repair-method", "lora_reprune", "--density", "1"], "a rank below both sides of its matrix"),
    (["evaluate", "--data", "TEXT", "--tokens", "8192"], f"tokens {LONG}"),
]


@pytest.fixture
def _unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the weights of a model are loaded."""
    monkeypatch.setattr(verbs, "load", lambda *_, **__: pytest.fail("the weights must not be loaded"))


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
    assert "task must be a task of" in error_line(capsys, "evaluate", model, "--task", "none", "--tasks", tmp_path)


@pytest.mark.parametrize(("given", "recorded"), [([], CONTEXT), (["--tokens", "100"], 100)])
def test_a_default_length_is_lowered_to_the_context(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], recorded: int
) -> None:
    def publish(_: Any, __: Path, facts: Any, ___: Any) -> Record:
        assert facts.prune.tokens == recorded
        raise KeyboardInterrupt

    (tmp_path / "short").mkdir()
    for file in tiny_folder.iterdir():
        content = file.read_bytes()
        if file.name == "config.json":
            content = content.replace(b'"max_position_embeddings": 512', b'"max_position_embeddings": %d' % CONTEXT)
        (tmp_path / "short" / file.name).write_bytes(content)
    monkeypatch.setattr(stages, "publish", publish)
    command = ["prune", tmp_path / "short", "--sparsity", "0.5", "--method", "magnitude", "--out", tmp_path / "out"]
    assert main([*map(str, command), *given]) == 130
