"""A job that publishes its model in several formats."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.comparison import DESCRIBING
from seft.errors import ConfigError
from tests.worker.test_pipeline import Run
from worker.protocol import RESULT


def test_a_tokenizer_without_a_format_is_rejected_before_the_weights_are_read(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(tiny_folder, models / "tiny")
    (models / "tiny" / "model.safetensors").write_bytes(b"none")
    tokenizer = json.loads((models / "tiny" / "tokenizer.json").read_bytes())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (models / "tiny" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match="only for a tokenizer that splits text like one of gpt-2"):
        Run(tmp_path / "run", models, tiny_texts[:40], output={"formats": ["dense", "gguf_q8_0"]}).run()


def test_a_job_publishes_its_formats_and_the_dense_model_only_if_it_is_one(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    files = dict[str, dict[str, str]]()
    only_pruned: dict[str, Any] = {"prune": {"method": "magnitude"}, "repair": {"method": "none"}}
    for formats in (["dense"], ["gguf_q8_0", "dense", "compact"], ["gguf_q8_0", "compact"]):
        name = "+".join(formats)
        run = Run(tmp_path / name, tiny_folder.parent, tiny_texts[:40], **only_pruned, output={"formats": formats})
        manifest = json.loads(run.run().manifest())
        files[name] = {file["name"]: file["sha256"] for file in manifest["files"]}
        assert {path.name for path in (run.folder / RESULT).iterdir()} == {*files[name], "manifest.json"}
    dense, every, files_only = files.values()
    made = {"model-Q8_0.gguf", "model.seft"}
    assert every.keys() - dense.keys() == made
    assert {name for name in dense if dense[name] != every[name]} == {"README.md"}
    assert files_only.keys() == {"README.md", "sparsity.json", *made}
    assert {name: files_only[name] for name in made} == {name: every[name] for name in made}
    result = tmp_path / "gguf_q8_0+compact" / RESULT
    card = (result / "README.md").read_text()
    assert "llama-cli --model model-Q8_0.gguf" in card
    assert "seft generate model.seft" in card
    assert "from_pretrained" not in card
    with open_container(result / "model.seft") as container:
        container.expand(tmp_path / "expanded")
    expanded = {path.name: sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "expanded").iterdir()}
    assert expanded == {name: digest for name, digest in dense.items() if name not in DESCRIBING}
