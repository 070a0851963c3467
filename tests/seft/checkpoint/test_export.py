"""The exported folder: its bytes, its content, and that plain transformers loads it."""

import copy
import json
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from seft.checkpoint import sparsity
from seft.checkpoint.export import export, round_weights
from seft.checkpoint.facts import Base, Facts, Record
from seft.checkpoint.verify import fingerprint
from seft.config import EvaluateConfig, PruneConfig, RepairConfig
from seft.errors import ConfigError
from seft.models.load import Loaded
from seft.models.source import Kind, ModelSource
from seft.models.targets import decoder_blocks, target_linears
from seft.models.terms import NO_TERMS
from tests.seft.architectures import ARCHITECTURES
from tests.tiny import tiny_tokenizer, untrained_tiny

FACTS = Facts(
    base=Base("owner/tiny", Kind.HUB, "abc123", "apache-2.0"),
    prune=PruneConfig(sparsity=0.5),
    repair=RepairConfig(steps=20, density=0.005),
    scores={"dense": 10.0, "pruned": 30.25, "repaired": 15.5},
    evaluate=EvaluateConfig(),
    grown_zeros=1234,
    calibration_sha256="c" * 64,
    dataset_sha256="d" * 64,
)


def half_sparse() -> Loaded:
    """An untrained model with every second weight zero, half of these negative."""
    model = untrained_tiny()
    for linear in target_linears(model).values():
        linear.weight.data[:, ::4] = 0.0
        linear.weight.data[:, 1::4] = -0.0
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return Loaded(model, tokenizer, ModelSource("owner/tiny", Kind.HUB, None, "abc123", {}, "apache-2.0"))


def export_half_sparse(out: Path) -> None:
    export(half_sparse(), out, FACTS)


def test_two_processes_write_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=export_half_sparse, args=(tmp_path / "elsewhere",))
    process.start()
    process.join()
    assert process.exitcode == 0
    manifests = [(path / "manifest.json").read_bytes() for path in (exported, tmp_path / "elsewhere")]
    assert manifests[0] == manifests[1]


def test_no_file_contains_the_path_of_the_folder(exported: Path) -> None:
    for path in exported.iterdir():
        assert str(exported.parent).encode() not in path.read_bytes(), path.name


def test_plain_transformers_loads_the_rounded_weights(exported: Path) -> None:
    loaded = half_sparse()
    round_weights(loaded.model)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_whoever_can_read_one_file_can_read_all(exported: Path) -> None:
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1


def test_weights_are_bfloat16_with_no_negative_zero(exported: Path) -> None:
    for name, weight in load_file(exported / "model.safetensors").items():
        assert weight.dtype == torch.bfloat16, name
        assert not (weight.view(torch.int16) == -(2**15)).any(), name


def test_the_tokenizer_is_loaded_with_its_template(exported: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer("def f(x): return ½").input_ids == tiny_tokenizer()("def f(x): return ½").input_ids
    assert tokenizer.apply_chat_template([{"content": "hello"}], tokenize=False) == "hello"
    assert tokenizer.eos_token == "<eos>"


def test_several_templates_are_in_the_folder_itself(tmp_path: Path) -> None:
    loaded = half_sparse()
    loaded.tokenizer.chat_template = {"default": "one", "tools": "two"}
    export(loaded, tmp_path / "model", FACTS)
    names = [file["name"] for file in json.loads((tmp_path / "model" / "manifest.json").read_bytes())["files"]]
    assert not [name for name in names if "/" in name]
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == loaded.tokenizer.chat_template


def test_the_configuration_files_work_with_older_loaders(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_bytes())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["dtype"] == "bfloat16"
    assert config["use_cache"] is True
    assert "quantization_config" not in config
    assert json.loads((exported / "tokenizer_config.json").read_bytes())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_record_is_read_back_and_counts_the_files(exported: Path) -> None:
    record = Record.read(exported)
    assert record.facts == FACTS
    assert record.sparsity == sparsity.of_folder(exported)
    assert record.sparsity.linears.share == 0.5
    assert 0.3 < record.sparsity.model.share < 0.5
    assert json.loads((exported / "sparsity.json").read_bytes())["sparsity"]["linears"]["share"] == 0.5


def test_the_model_keeps_its_dtype_and_its_rotary_frequencies(tmp_path: Path) -> None:
    loaded = half_sparse()
    before = {name: buffer.clone() for name, buffer in loaded.model.named_buffers()}
    export(loaded, tmp_path / "out", FACTS)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert "model.rotary_emb.inv_freq" in before
    assert all(torch.equal(before[name], buffer) for name, buffer in loaded.model.named_buffers())


def test_rounding_twice_is_rounding_once() -> None:
    model = half_sparse().model
    round_weights(model)
    once = {name: weight.clone() for name, weight in model.state_dict().items()}
    round_weights(model)
    assert all(torch.equal(once[name], weight) for name, weight in model.state_dict().items())


def test_the_card_has_the_facts_that_a_reader_needs(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    record = Record.read(exported)
    assert text.startswith("---\n")
    for expected in (
        "base_model: owner/tiny",
        "license: apache-2.0",
        "| pruned | 30.25 |",
        "| repaired | 15.50 |",
        "| the pruned linear layers | 50.00% |",
        f"| the whole model | {record.sparsity.model.share:.2%} |",
        "| revision | abc123 |",
        "| dataset sha256 | " + "d" * 64,
        "1,234 weights that pruning set to zero",
        "compute with every zero",
    ):
        assert expected in text, expected
    assert not re.search(r"\bNone\b", text)


def test_the_card_of_a_model_that_was_only_pruned_claims_no_repair(tmp_path: Path) -> None:
    facts = replace(FACTS, repair=None, scores={}, base=Base("tiny.gguf", Kind.GGUF, None, None))
    export(half_sparse(), tmp_path / "out", facts)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "not repaired" in text
    assert "SEFT" not in text
    assert "Scores" not in text
    assert "base_model" not in text


def test_the_loading_lines_of_the_card_work(exported: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec(code[1].replace("PATH", str(exported)), names)
    assert type(names["model"]).__name__ == "LlamaForCausalLM"


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seft.checkpoint.export.MAX_SHARD", "100KB")
    export(half_sparse(), tmp_path / "out", FACTS)
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 110_000 for path in shards)


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="must be a new or an empty folder"):
        export(half_sparse(), tmp_path, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_scores_that_are_not_finite_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"scores\.pruned must be finite"):
        replace(FACTS, scores={"pruned": float("inf")})


def test_the_base_is_published_without_its_path(tmp_path: Path) -> None:
    source = ModelSource(
        str(tmp_path / "deep" / "tiny.gguf"), Kind.GGUF, tmp_path / "deep" / "tiny.gguf", None, {}, None
    )
    assert Base.of(source, NO_TERMS, {}).reference == "tiny.gguf"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_fingerprint_of_a_bfloat16_model_is_that_of_its_float32_copy(name: str) -> None:
    """No more than one block is in float32 at a time, and the model is unchanged afterwards."""
    model: Any = ARCHITECTURES[name].model().to(torch.bfloat16)
    expected, weights = fingerprint(copy.deepcopy(model).float()), [each.data_ptr() for each in model.parameters()]
    in_float32 = []
    for block in decoder_blocks(model):
        block.register_forward_hook(
            lambda *_: in_float32.append(sum(w.numel() for w in model.parameters() if w.dtype == torch.float32))
        )
    assert fingerprint(model) == expected
    assert in_float32 == [sum(w.numel() for w in block.parameters()) for block in decoder_blocks(model)]
    assert [each.data_ptr() for each in model.parameters()] == weights
