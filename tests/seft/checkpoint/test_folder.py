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
from seft.checkpoint.facts import Record
from seft.checkpoint.folder import count_zeros, inspect
from seft.checkpoint.provenance import hash_model
from seft.cli import main
from seft.config import RepairConfig
from seft.errors import ConfigError, SourceError
from seft.models.load import load
from seft.models.source import find
from seft.models.targets import target_linears
from seft.verbs import repair
from tests.seft.architectures import ARCHITECTURES
from tests.seft.counting import counted
from tests.tiny import sparse_tiny, tiny_tokenizer, untrained_tiny

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
    found, expected = count_zeros(tmp_path, config(tmp_path)), sparsity.of_folder(tmp_path)
    assert (found.linears, found.model) == (expected.linears, expected.model)
    # The files may have other names for experts.
    plain, same = (
        {key: count for key, count in each.layers.items() if "expert" not in key} for each in (found, expected)
    )
    assert plain == same


@pytest.mark.parametrize("older", ["shards", "single file"])
def test_the_zeros_are_those_of_the_files_that_are_loaded(older: str, tmp_path: Path) -> None:
    models, sizes = (untrained_tiny(seed=1), sparse_tiny()), ("100KB", "5GB")
    for model, size in zip(models, sizes if older == "shards" else sizes[::-1], strict=True):
        model.save_pretrained(tmp_path, max_shard_size=size)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = find(str(tmp_path))
    assert {"model.safetensors", "model.safetensors.index.json"} <= {path.name for path in tmp_path.iterdir()}
    assert inspect(tmp_path)[0].linears == counted(load(found).model).linears
    assert "model.safetensors" in hash_model(tmp_path)


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
    found = count_zeros(tmp_path, config(tmp_path))
    assert found == counted(model)
    blocks = [int(name.split(".")[2]) for name in found.layers]
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


def test_repair_refuses_a_record_that_does_not_describe_the_weights_and_inspect_says_so(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = tmp_path / "pruned"
    assert main(["prune", str(tiny_folder), "--sparsity", "0.5", "--method", "magnitude", "--out", str(pruned)]) == 0
    weights = load_file(pruned / "model.safetensors")
    weights[f"{Q}.weight"][0] = 1.0
    save_file(weights, pruned / "model.safetensors", {"format": "pt"})
    zeros = count_zeros(pruned, config(pruned)).linears.zeros
    recorded = Record.read(pruned).sparsity.linears.zeros
    rule = (
        f"must have the zeros that its sparsity.json records for linears, {recorded}; it has {zeros}. Prune the model"
    )
    with pytest.raises(ConfigError, match=f"folder {rule}"):  # before any text is read or any weight is loaded
        repair(pruned, RepairConfig(steps=1), tmp_path / "out", data=tmp_path / "none.jsonl")
    capsys.readouterr()
    assert main(["inspect", str(pruned)]) == 0
    assert "The record does not describe these weights" in capsys.readouterr().out
    assert main(["inspect", str(pruned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == "linears"


def run(commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run commands of the library in a process in which torch and transformers cannot be imported.

    Return the exit code, the output and the messages of each.
    """
    script = """
import contextlib, io, json, sys
sys.modules["torch"] = sys.modules["transformers"] = None
from seft.cli import main
ended = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        ended.append((main(words), out.getvalue(), errors.getvalue()))
json.dump(ended, sys.stdout)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.run(command, input=json.dumps(commands), capture_output=True, text=True, check=True)
    return [(code, out, errors) for code, out, errors in json.loads(process.stdout)]


def test_inspect_needs_no_torch(tiny_folder: Path) -> None:
    ((code, out, errors),) = run([["inspect", str(tiny_folder), "--json"]])
    assert code == 0, errors
    assert json.loads(out)["sparsity"] == sparsity.of_folder(tiny_folder).data()


def test_wrong_arguments_are_refused_before_torch_is_imported(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (data := tmp_path / "full" / "data.jsonl").write_text('{"text": "a"}\n')
    tiny, full, new = map(str, (tiny_folder, tmp_path / "full", tmp_path / "new"))
    cases = [
        (["prune", tiny, "--sparsity", "0.5", "--out", full], "--out must be a new or an empty folder"),
        (["compress", tiny, "--sparsity", "0.5", "--data", str(data), "--out", full], "--out must be a new"),
        (["repair", tiny, "--data", str(data), "--out", full], "--out must be a new"),
        (["repair", tiny, "--data", f"{full}/none.jsonl", "--out", new], "--data must be a file"),
        (["repair", tiny, "--data", str(data), "--held-out", "x.csv", "--out", new], "--held-out must end in .jsonl"),
        (["repair", f"{full}/none", "--data", str(data), "--out", new], "folder must be a folder with a model"),
        (["prune", "none", "--sparsity", "0.5", "--out", new], "a model must be a local model or a hub id"),
        (["compress", "none", "--sparsity", "0.5", "--data", str(data), "--out", new], "a model must be a local model"),
        (["evaluate", "none", "--data", str(data)], "a model must be a local model"),
        (["prune", tiny, "--sparsity", "2", "--out", new], "--sparsity must be from 0.0 to 0.99"),
        (["prune", tiny, "--sparsity", "0.5", "--calibration", "none.txt", "--out", new], "--calibration must be a"),
    ]
    for (words, message), (code, _, errors) in zip(cases, run([words for words, _ in cases]), strict=True):
        assert (code, errors.startswith(f"error: {message}")) == (2, True), (words, errors)
