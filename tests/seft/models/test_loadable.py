"""A loader sees only the files of a model and the keys of its configuration that are known to be needed."""

import json
from pathlib import Path
from typing import Any

import pytest

from seft.errors import SourceError
from seft.models.config_keys import CONFIG_KEYS
from seft.models.load import load
from seft.models.loadable import TOKENIZER_KEYS, loadable
from seft.models.source import find
from tests.hollow import CONFIG, write_hollow
from tests.seft.architectures import ARCHITECTURES
from tests.seft.models import config_keys


def test_the_keys_are_those_of_the_installed_transformers() -> None:
    known = config_keys.known_keys()
    made_by = "python -m tests.seft.models.config_keys"
    assert known == CONFIG_KEYS, f"run {made_by}; differences: {sorted(known ^ CONFIG_KEYS)}"
    assert not {key for key in CONFIG_KEYS if "implementation" in key}
    assert not {key for key in TOKENIZER_KEYS if key.endswith("_file")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_is_left_out_of_a_configuration_that_the_library_writes(name: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[name].model()
    model.config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_bytes())
    with loadable(tmp_path) as folder:
        assert (
            type(model.config).from_pretrained(folder).to_dict()
            == type(model.config).from_pretrained(tmp_path).to_dict()
        )
        seen = json.loads((folder / "config.json").read_bytes())
    ignored = {"_name_or_path", "output_attentions", "output_hidden_states", "return_dict", "problem_type"}
    assert written.keys() - seen.keys() <= ignored | {"chunk_size_feed_forward"}


def test_files_and_keys_that_are_not_needed_are_hidden(tmp_path: Path) -> None:
    model = write_hollow(tmp_path / "model")
    attack = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel", "to_dict": 1}
    config = {
        **CONFIG,
        **attack,
        "text_config": {**attack, "hidden_size": 8},
        "rope_scaling": {**attack, "factor": 2.0},
    }
    (model / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((model / "tokenizer_config.json").read_bytes())
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (model / name).write_text(
            json.dumps({**tokenizer, "vocab_file": "/etc/passwd", "tokenizer_file": "/etc/passwd"})
        )
    for name in ("adapter_config.json", "model.py", "pytorch_model.bin", "modeling.json"):
        (model / name).write_text("{}")
    (model / "model.d.safetensors").mkdir()
    with loadable(model) as folder:
        names = {file.name for file in folder.iterdir()}
        assert names == {
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        expected = {**CONFIG, "text_config": {"hidden_size": 8}, "rope_scaling": {"factor": 2.0}}
        assert json.loads((folder / "config.json").read_bytes()) == expected
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            assert json.loads((folder / name).read_bytes()) == tokenizer
    assert not folder.exists()


def test_a_gguf_file_is_shown_without_its_neighbours(tmp_path: Path) -> None:
    write_hollow(tmp_path / "models")
    (tmp_path / "models" / "model.gguf").write_bytes(b"GGUF")
    with loadable(tmp_path / "models" / "model.gguf") as folder:
        assert [file.name for file in folder.iterdir()] == ["model.gguf"]


def test_a_configuration_that_is_too_large_is_rejected(tmp_path: Path) -> None:
    with (write_hollow(tmp_path / "model") / "special_tokens_map.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(SourceError, match="must be a JSON object of at most"), loadable(tmp_path / "model"):
        pass


def test_an_adapter_and_an_attention_from_the_hub_have_no_effect(tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_folder.iterdir():
        (model / file.name).symlink_to(file)
    config = json.loads((tiny_folder / "config.json").read_bytes())
    (model / "config.json").unlink()
    (model / "config.json").write_text(json.dumps({**config, "attn_implementation": "evil/kernel"}))
    (model / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/base"})
    )
    loaded: Any = load(find(str(model))).model
    assert loaded.config._attn_implementation != "evil/kernel"
    assert not hasattr(loaded, "peft_config")
