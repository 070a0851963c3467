"""Models and texts that cannot work are refused before the weights are read."""

import json
import shutil
from pathlib import Path

import pytest

from seft.errors import ConfigError, DataError
from tests.worker.test_pipeline import Run, _restore_torch_settings  # noqa: F401


@pytest.fixture
def models(tmp_path: Path, tiny_folder: Path) -> Path:
    """A folder with the tiny model, whose weights cannot be read."""
    folder = tmp_path / "models"
    shutil.copytree(tiny_folder, folder / "tiny")
    (folder / "tiny" / "model.safetensors").write_bytes(b"none")
    return folder


def test_a_tokenizer_without_a_format_is_rejected_before_the_weights_are_read(
    tmp_path: Path, models: Path, tiny_texts: list[str]
) -> None:
    tokenizer = json.loads((models / "tiny" / "tokenizer.json").read_bytes())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (models / "tiny" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="only for a tokenizer that splits text like one of gpt-2"):
        Run(tmp_path / "run", models, tiny_texts[:40], output={"formats": ["dense", "gguf_q8_0"]}).run()


def test_a_conversation_for_a_model_without_chat_template_is_rejected_before_the_weights_are_read(
    tmp_path: Path, models: Path
) -> None:
    chats = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]}
        for word in ("one", "two")
    ]
    with pytest.raises(ConfigError, match="must have a chat template"):
        Run(tmp_path / "run", models, chats).run()


def test_a_text_that_is_too_short_is_rejected_before_the_weights_are_read(tmp_path: Path, models: Path) -> None:
    rule = (
        r"^training text: the text must have at least \d+ tokens, the length of one sequence.*"
        r" The fields of the request for it are dataset, .*\(records: 1\) are held"
    )
    with pytest.raises(DataError, match=rule):
        Run(tmp_path / "run", models, ["a few words", "and some others"]).run()
