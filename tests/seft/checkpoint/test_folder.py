"""A folder is read without torch: its zeros are those that torch counts, for every architecture and dtype."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seft.checkpoint import folder as reader
from seft.checkpoint import sparsity
from seft.checkpoint.counts import Count
from seft.checkpoint.folder import count_zeros, inspect
from seft.errors import ConfigError, SourceError
from seft.models.targets import target_linears
from tests.seft.architectures import ARCHITECTURES
from tests.tiny import untrained_tiny

Q = "model.layers.0.self_attn.q_proj"


def config(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "config.json").read_bytes())
    return content


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_zeros_are_those_that_torch_counts_for_every_architecture(name: str, tmp_path: Path) -> None:
    model = ARCHITECTURES[name].model().to(torch.bfloat16)
    for number, target in enumerate(target_linears(model).values()):
        target.weight[0, : number % 7 + 1] = -0.0 if number % 2 else 0.0
    model.save_pretrained(tmp_path)
    counted, expected = count_zeros(tmp_path, config(tmp_path)), sparsity.of_folder(tmp_path)
    assert (counted.linears, counted.model) == (expected.linears, expected.model)
    # The files may have other names for experts.
    plain, same = (
        {key: count for key, count in each.layers.items() if "expert" not in key} for each in (counted, expected)
    )
    assert plain == same


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_zeros_of_both_signs_are_counted_in_every_dtype(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CHUNK", 100)
    untrained_tiny().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = torch.full((64, 64), -1.5, dtype=torch.float64)
    weight[:2], weight[2:3], weight[-1, -1] = 0.0, -0.0, torch.finfo(dtype).tiny
    tensors[f"{Q}.weight"] = weight.to(dtype)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert count_zeros(tmp_path, config(tmp_path)).layers[Q] == Count(3 * 64, 64 * 64)


def test_layers_have_the_order_of_the_blocks_and_all_files_are_read(tmp_path: Path) -> None:
    model = untrained_tiny()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    counted = count_zeros(tmp_path, config(tmp_path))
    assert counted == sparsity.of_model(model)
    blocks = [int(name.split(".")[2]) for name in counted.layers]
    assert blocks == sorted(blocks)


def test_a_folder_whose_zeros_cannot_be_counted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained_tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({"lm_head.weight": tensors["model.embed_tokens.weight"]}, path)
    with pytest.raises(SourceError, match="must have blocks with linear layers"):
        count_zeros(tmp_path, config(tmp_path))
    save_file(tensors, path)
    with monkeypatch.context() as patch:
        patch.setattr(reader, "UNITS", {})
        with pytest.raises(SourceError, match="dtype F32 cannot be counted; 'model"):
            count_zeros(tmp_path, config(tmp_path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match="must be a readable safetensors file"):
        count_zeros(tmp_path, config(tmp_path))


def test_what_is_no_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder must be a folder with a model"):
        inspect(tmp_path / "none")
    with pytest.raises(SourceError):
        inspect(tmp_path)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the library while torch and transformers cannot be imported."""
    script = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from seft.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_inspect_needs_no_torch(tiny_folder: Path) -> None:
    ended = run("inspect", tiny_folder, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["sparsity"] == sparsity.of_folder(tiny_folder).data()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", "TINY", "--sparsity", "0.5", "--out", "FULL"], "out must be a new or an empty folder"),
        (["compress", "TINY", "--sparsity", "0.5", "--data", "DATA", "--out", "FULL"], "out must be a new"),
        (["repair", "TINY", "--data", "DATA", "--out", "FULL"], "out must be a new"),
        (["repair", "TINY", "--data", "FULL/none.jsonl", "--out", "NEW"], "data must be a file"),
        (["repair", "TINY", "--data", "DATA", "--held-out", "x.csv", "--out", "NEW"], "held_out must end in .jsonl"),
        (["repair", "FULL/none", "--data", "DATA", "--out", "NEW"], "folder must be a folder with a model"),
        (["prune", "none", "--sparsity", "0.5", "--out", "NEW"], "a model must be a local model or a hub id"),
        (["compress", "none", "--sparsity", "0.5", "--data", "DATA", "--out", "NEW"], "a model must be a local model"),
        (["evaluate", "none", "--data", "DATA"], "a model must be a local model"),
        (["prune", "TINY", "--sparsity", "2", "--out", "NEW"], "sparsity must be from 0.0 to 0.99"),
        (["prune", "TINY", "--sparsity", "0.5", "--calibration", "none.txt", "--out", "NEW"], "calibration must be a"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else words.replace(" ", "-"),
)
def test_wrong_arguments_are_refused_before_torch_is_imported(
    words: list[str], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (data := tmp_path / "full" / "data.jsonl").write_text('{"text": "a"}\\n')
    places = {"TINY": str(tiny_folder), "FULL": str(tmp_path / "full"), "DATA": str(data), "NEW": str(tmp_path / "new")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    ended = run(*words)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {message}"), ended.stderr
