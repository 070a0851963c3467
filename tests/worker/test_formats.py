"""A job that publishes its model in several formats."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.comparison import DESCRIBING
from tests.worker.test_pipeline import Run
from worker.protocol import RESULT


def test_a_job_publishes_its_formats_and_the_dense_model_only_if_it_is_one(
    tmp_path: Path, tiny_folder: Path, tiny_texts: list[str]
) -> None:
    files = dict[str, dict[str, str]]()
    only_pruned: dict[str, Any] = {"prune": {"method": "magnitude"}, "repair": {"method": "none"}}
    for formats in (["dense"], ["gguf_q8_0", "dense", "compact"], ["gguf_q8_0", "compact", "compact_nf4"]):
        name = "+".join(formats)
        run = Run(tmp_path / name, tiny_folder.parent, tiny_texts[:20], **only_pruned, output={"formats": formats})
        manifest = json.loads(run.run().manifest())
        files[name] = {file["name"]: file["sha256"] for file in manifest["files"]}
        assert {path.name for path in (run.folder / RESULT).iterdir()} == {*files[name], "manifest.json"}
    dense, every, files_only = files.values()
    made = {"model-Q8_0.gguf", "model.seft"}
    assert every.keys() - dense.keys() == made
    assert {name for name in dense if dense[name] != every[name]} == {"README.md"}
    assert files_only.keys() == {"README.md", "sparsity.json", "model-nf4.seft", *made}
    assert {name: files_only[name] for name in made} == {name: every[name] for name in made}
    result = tmp_path / "gguf_q8_0+compact+compact_nf4" / RESULT
    card = (result / "README.md").read_text()
    assert "llama-cli --model model-Q8_0.gguf" in card
    assert "seft generate model.seft" in card
    assert "seft generate model-nf4.seft" in card
    assert "from_pretrained" not in card
    with open_container(result / "model.seft") as container:
        container.expand(tmp_path / "expanded")
    expanded = {path.name: sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "expanded").iterdir()}
    assert expanded == {name: digest for name, digest in dense.items() if name not in DESCRIBING}
