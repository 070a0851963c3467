"""What tests share: the tiny model, trained once in a session, and its text."""

import json
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with the trained tiny Llama."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.train_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text it learnt, as a JSONL file of records."""
    path = tmp_path_factory.mktemp("text") / "topics.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.tiny_texts()), encoding="utf-8")
    return path
