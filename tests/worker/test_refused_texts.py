"""Texts that do not fit the model are refused before its weights are read."""

import shutil
from pathlib import Path

import pytest

from seft.errors import ConfigError, DataError
from tests.worker.test_pipeline import Run, _restore_torch_settings  # noqa: F401


def test_a_conversation_for_a_model_without_chat_template_is_rejected_before_the_weights_are_read(
    tmp_path: Path, tiny_folder: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_folder, models / "tiny")
    (models / "tiny" / "model.safetensors").write_bytes(b"none")
    chats = [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]}
        for word in ("one", "two")
    ]
    with pytest.raises(ConfigError, match="must have a chat template"):
        Run(tmp_path / "run", models, chats).run()


def test_a_text_that_is_too_short_is_rejected_before_the_weights_are_read(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_folder, models / "tiny")
    (models / "tiny" / "model.safetensors").write_bytes(b"none")
    rule = (
        r"^training text: the text must have at least \d+ tokens, the length of one sequence.*"
        r" The fields of the request for it are dataset, .*\(records: 1\) are held"
    )
    with pytest.raises(DataError, match=rule):
        Run(tmp_path / "run", models, ["a few words", "and some others"]).run()
