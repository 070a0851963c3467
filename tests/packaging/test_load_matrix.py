"""The newest transformers and the last version 4 load a dense folder and an expanded one, without our code.

They find every weight, the same zeros and the same logits.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seft.checkpoint import sparsity
from seft.checkpoint.compact.reader import open_container
from seft.checkpoint.compact.writer import pack
from tests.seft.checkpoint.test_export import export_half_sparse

OLD = ("transformers==4.57.6", "huggingface_hub<1", "tokenizers<=0.23.0")
"""The last version 4, and the versions of its packages that it requires and the newest transformers does not."""
LOAD = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

for folder in sys.argv[1:]:
    tokens = AutoTokenizer.from_pretrained(folder)("The for statement", return_tensors="pt").input_ids
    model, problems = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", output_loading_info=True)
    with torch.no_grad():
        logits = model(tokens).logits[0, -1].tolist()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("_proj.weight")}
    loaded = {
        "problems": [text for texts in problems.values() for text in texts],
        "zeros": {name: int((tensor == 0).sum()) for name, tensor in weights.items()},
        "logits": logits,
    }
    print(json.dumps([transformers.__version__, loaded]))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the old packages, to be imported before the installed ones."""
    folder = tmp_path_factory.mktemp("old")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder))
    subprocess.run([*pip, *OLD], check=True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A sparse checkpoint, and the same after it was packed and expanded."""
    folder = tmp_path_factory.mktemp("models")
    export_half_sparse(folder / "dense")
    pack(folder / "dense", folder / "model.seft")
    with open_container(folder / "model.seft") as container:
        container.expand(folder / "expanded")
    return [folder / "dense", folder / "expanded"]


def load(folders: list[Path], packages: Path | None) -> list[Any]:
    """Load folders in a new process that imports `packages` first and nothing of the project."""
    environment = {"PYTHONPATH": str(packages or ""), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", LOAD, *map(str, folders)]
    done = subprocess.run(command, env=environment, cwd=folders[0], stdout=subprocess.PIPE, check=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_versions_of_transformers_load_the_same_model(folders: list[Path], old: Path) -> None:
    loaded = load(folders, None) + load(folders, old)
    assert [version[:2] for version, _ in loaded] == ["5.", "5.", "4.", "4."]
    first = loaded[0][1]
    assert first["problems"] == []
    counted = sparsity.of_folder(folders[0]).layers
    assert first["zeros"] == {f"{name}.weight": count.zeros for name, count in counted.items()}
    assert all(each == first for _, each in loaded)
