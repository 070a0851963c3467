"""Fixtures that several files of this folder share."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory, tiny_texts: list[str]) -> Path:
    """A file with twenty records of the text that the tiny Llama was trained on. Read only."""
    path = tmp_path_factory.mktemp("texts") / "topics.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny_texts[:20]))
    return path
