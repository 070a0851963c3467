"""GGUF files: every zero is kept, the values are those of the quantiser, and transformers computes the same logits."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from seft.checkpoint import gguf_file
from seft.checkpoint.export import export
from seft.checkpoint.facts import MANIFEST
from seft.checkpoint.formats import verify_format, write_format
from seft.checkpoint.gguf_file import write
from seft.checkpoint.verify import check, verify_file
from seft.config import OutputFormat
from seft.errors import ConfigError, VerifyError
from seft.models.load import Loaded, load
from seft.models.source import Kind, ModelSource, find
from seft.models.targets import target_linears
from tests.seft.architectures import ARCHITECTURES
from tests.seft.checkpoint.test_export import FACTS, half_sparse
from tests.tiny import tiny_tokenizer

GGUF = [each for each in OutputFormat if each.is_gguf]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
ODD = {**SIZES, "intermediate_size": 72}
"""One matrix of each block has columns that do not fill blocks of 32."""
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with tied embeddings": ("llama", {**SIZES, "rope_parameters": None, "vocab_size": 400}),
    "llama 3.1": ("llama", {**SIZES, "tie_word_embeddings": False}),
    "llama with linear positions": ("llama", {**SIZES, "rope_parameters": LINEAR}),
    "mistral": ("mistral", {**ODD, "sliding_window": None}),
    "qwen2 with biases": ("qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**ODD, "head_dim": 128}),
}


def sparse(name: str, tokenizer: PreTrainedTokenizerFast | None = None) -> Loaded:
    """A model with random weights, in which every second weight of the pruned layers is zero."""
    kind, settings = MODELS[name]
    architecture = ARCHITECTURES[kind]
    model = replace(architecture, settings={**architecture.settings, **settings}).model()
    for linear in target_linears(model).values():
        linear.weight.data[:, ::2] = 0.0
    source = ModelSource("owner/tiny", Kind.HUB, None, "abc123", {}, "apache-2.0")
    return Loaded(model, tokenizer or tiny_tokenizer(), source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a model in all formats. It is written once."""
    root, written = tmp_path_factory.mktemp("formats"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in written:
            export(sparse(name), root / name, FACTS, [*OutputFormat])
            written[name] = root / name
        return written[name]

    return folder


@pytest.fixture
def copy(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a folder that a test may damage."""
    return Path(shutil.copytree(folders("llama with tied embeddings"), tmp_path / "copy"))


@pytest.mark.parametrize("name", MODELS)
def test_every_format_passes_the_verification(folders: Callable[[str], Path], name: str) -> None:
    folder = folders(name)
    check(folder)
    files = {file["name"] for file in json.loads((folder / MANIFEST).read_bytes())["files"]}
    assert files >= {"model.safetensors", *(each.file for each in GGUF)}


@pytest.mark.parametrize("name", MODELS)
def test_the_exact_format_gives_the_logits_of_the_dense_model(folders: Callable[[str], Path], name: str) -> None:
    folder = folders(name)
    tokens = torch.arange(2, 66)[None]
    dense, loaded = (load(find(str(path))).model for path in (folder, folder / "model-BF16.gguf"))
    with torch.no_grad():
        expected, logits = (model(input_ids=tokens).logits for model in (dense, loaded))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("format_", GGUF)
def test_every_zero_of_the_folder_is_zero_when_transformers_loads_the_file(
    folders: Callable[[str], Path], name: str, format_: OutputFormat
) -> None:
    folder = folders(name)
    assert format_.file
    loaded = load(find(str(folder / format_.file))).model.state_dict()
    zeros = 0
    for tensor, weight in load_file(folder / "model.safetensors").items():
        assert not loaded[tensor][weight == 0].any(), tensor
        zeros += int((weight == 0).sum())
    assert zeros > 10_000


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0"])
def test_the_offered_types_keep_zeros(kind: str) -> None:
    assert not requantized(kind)[HALF == 0].any()


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_the_refused_types_lose_most_zeros(kind: str) -> None:
    assert (requantized(kind)[HALF == 0] == 0).mean() < 0.1


HALF = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
HALF[:, ::2] = 0


def requantized(kind: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    type_ = GGMLQuantizationType[kind]
    result: np.ndarray[Any, np.dtype[np.float32]] = dequantize(quantize(HALF, type_), type_)
    return result


def test_norms_stay_float32_and_the_head_has_at_least_eight_bits(folders: Callable[[str], Path]) -> None:
    types = {each.name: each.tensor_type.name for each in GGUFReader(folders("mistral") / "model-Q4_0.gguf").tensors}
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["output.weight"] == "Q8_0"
    assert types["token_embd.weight"] == types["blk.0.attn_q.weight"] == "Q4_0"
    assert types["blk.0.ffn_down.weight"] == "BF16", "its columns do not fill blocks of 32"
    tied = GGUFReader(folders("llama with tied embeddings") / "model-Q4_0.gguf").tensors
    assert {each.name: each.tensor_type.name for each in tied}["token_embd.weight"] == "Q8_0"


def test_the_factors_of_llama_3_are_those_of_transformers(folders: Callable[[str], Path]) -> None:
    folder = folders("llama 3.1")
    (factors,) = (each for each in GGUFReader(folder / "model-Q8_0.gguf").tensors if each.name == "rope_freqs.weight")
    config = AutoConfig.from_pretrained(folder)
    assert config.rope_parameters["rope_type"] == "llama3"
    scaled = AutoModelForCausalLM.from_config(config).model.rotary_emb.inv_freq
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(torch.from_numpy(factors.data.copy()), plain / scaled)
    assert len(set((plain / scaled).tolist())) > 2


@pytest.mark.parametrize("format_", GGUF)
def test_a_file_is_written_in_small_pieces_with_the_same_bytes(
    folders: Callable[[str], Path], format_: OutputFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sink(io.BytesIO):
        largest = 0

        def write(self, data: Any) -> int:
            self.largest = max(self.largest, len(data))
            return super().write(data)

    folder, sink = folders("mistral"), Sink()
    monkeypatch.setattr(gguf_file, "CHUNK", 512)
    write(folder, format_, sink)
    assert format_.file
    assert sink.getvalue() == (folder / format_.file).read_bytes()
    header = sink.getvalue().index(b"output_norm.weight")
    assert sink.largest < max(4 * 512 + 1, header + 4096), "no tensor is written as a whole"


def test_negative_zeros_of_a_folder_become_zeros(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][:, ::2] = -0.0
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    write_format(copy, OutputFormat.GGUF_BF16, tmp_path / "new.gguf")
    assert (tmp_path / "new.gguf").read_bytes() == (copy / "model-BF16.gguf").read_bytes()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"hidden_act": "gelu"}, "the activation silu"),
        ({"architectures": ["OPTForCausalLM"]}, "an architecture of LlamaForCausalLM"),
    ],
    ids=str,
)
def test_a_failed_export_leaves_no_file(copy: Path, tmp_path: Path, change: dict[str, Any], rule: str) -> None:
    config = json.loads((copy / "config.json").read_bytes())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=f"only for a model with {rule}"):
        write_format(copy, OutputFormat.GGUF_Q8_0, tmp_path / "new.gguf")
    assert not (tmp_path / "new.gguf").exists()


@pytest.mark.parametrize("format_", GGUF)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(copy: Path, tmp_path: Path, format_: OutputFormat, value: float) -> None:
    weights = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name][0, 0] = value
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"folder must have finite weights; some are not in '{name}'"):
        write_format(copy, format_, tmp_path / "new.gguf")


def damage(file: Path, tensor: str, change: Callable[[Any], None]) -> None:
    """Change the stored bytes of one tensor of a file."""
    (found,) = (each for each in GGUFReader(file, "r+").tensors if each.name == tensor)
    change(found.data)


def test_a_wrong_value_is_detected_in_a_separate_process(copy: Path) -> None:
    file = copy / "model-Q8_0.gguf"
    verify_file(copy, file, OutputFormat.GGUF_Q8_0)

    def change(data: Any) -> None:
        data[3, 0] ^= 1  # the scale of a block

    damage(file, "blk.1.ffn_up.weight", change)
    with pytest.raises(VerifyError, match=r"must have the values of model\.layers\.1\.mlp\.up_proj\.weight in Q8_0"):
        verify_file(copy, file, OutputFormat.GGUF_Q8_0)


def test_a_lost_zero_is_detected(copy: Path) -> None:
    def change(data: Any) -> None:
        data[0, 2] = 1  # the first weight of a block, which is zero

    damage(copy / "model-Q8_0.gguf", "blk.0.attn_k.weight", change)
    with pytest.raises(VerifyError, match=r"must keep the zeros of model\.layers\.0\.self_attn\.k_proj\.weight"):
        verify_format(copy, copy / "model-Q8_0.gguf", OutputFormat.GGUF_Q8_0)


def test_damage_of_what_the_loader_does_not_use_is_detected(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders("llama 3.1")
    file = folder / "model-BF16.gguf"
    content = bytearray(file.read_bytes())
    content[content.index(b"general.quantization_version") + len(b"general.quantization_version") + 4] ^= 1
    (changed := tmp_path / file.name).write_bytes(content)
    with pytest.raises(VerifyError, match=r"must begin with the .* bytes that belong to the folder"):
        verify_format(folder, changed, OutputFormat.GGUF_BF16)


@pytest.mark.parametrize(
    ("factor", "found"),
    [(1.0, "must have positions of the type llama3; it has default"), (-1.0, "rope_freqs.weight is 8 factors from -1")],
)
def test_damaged_factors_of_positions_are_detected(
    folders: Callable[[str], Path], tmp_path: Path, factor: float, found: str
) -> None:
    folder = Path(shutil.copytree(folders("llama 3.1"), tmp_path / "copy"))
    damage(folder / "model-BF16.gguf", "rope_freqs.weight", lambda data: data.fill(factor))
    with pytest.raises(VerifyError, match=found):
        verify_format(folder, folder / "model-BF16.gguf", OutputFormat.GGUF_BF16)


def test_a_linear_factor_of_1_is_no_scaling(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("llama with linear positions"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": {**LINEAR, "factor": 1.0}}))
    write_format(folder, OutputFormat.GGUF_BF16, tmp_path / "new.gguf")
    verify_format(folder, tmp_path / "new.gguf", OutputFormat.GGUF_BF16)


@pytest.mark.parametrize(
    ("key", "value"), [("rms_norm_eps", 1e-3), ("num_attention_heads", 2), ("max_position_embeddings", 64)]
)
def test_a_wrong_setting_is_detected(copy: Path, key: str, value: float) -> None:
    config = json.loads((copy / "config.json").read_bytes())
    (copy / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(VerifyError, match=f"must have {key} {value}"):
        verify_format(copy, copy / "model-BF16.gguf", OutputFormat.GGUF_BF16)


def test_positions_of_another_type_are_detected(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("llama with linear positions"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": {**LINEAR, "rope_type": "default"}}))
    with pytest.raises(VerifyError, match="must have positions of the type default; it has linear"):
        verify_format(folder, folder / "model-BF16.gguf", OutputFormat.GGUF_BF16)


def test_a_missing_token_is_detected(copy: Path) -> None:
    text = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(text.replace('"<eos>"', '"<end>"'))
    with pytest.raises(VerifyError, match="must have the tokens of the tokenizer"):
        verify_format(copy, copy / "model-BF16.gguf", OutputFormat.GGUF_BF16)


def test_the_dense_folder_is_the_same_with_and_without_other_formats(tmp_path: Path) -> None:
    export(half_sparse(), tmp_path / "dense", FACTS)
    export(half_sparse(), tmp_path / "more", FACTS, [OutputFormat.DENSE, OutputFormat.GGUF_Q8_0])
    for path in (tmp_path / "dense").iterdir():
        if path.name not in {MANIFEST, "README.md"}:
            assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes(), path.name
    assert "llama-cli --model model-Q8_0.gguf" in (tmp_path / "more" / "README.md").read_text()
