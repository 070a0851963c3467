"""Settings that transformers does not read from a GGUF file. A file gives the logits of the model that was written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from seft.errors import SourceError
from seft.models.gguf_settings import LOADABLE, unread_settings
from seft.models.load import load
from seft.models.source import find
from tests.seft.architectures import Architecture
from tests.seft.gguf_files import write_gguf
from tests.seft.models.test_load import logits

SHAPE = {"num_key_value_heads": 2, "tie_word_embeddings": False}
EPSILON = {"attention.layer_norm_epsilon": 1e-5}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, float]]] = {
    "biases": ("llama", "refact", {"attention_bias": True, "mlp_bias": True}, {}),
    "bias of the MLP": ("llama", "refact", {"mlp_bias": True}, {}),
    "StarCoder2": (
        "starcoder2",
        "starcoder",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        EPSILON,
    ),
    "StableLM": (
        "stablelm",
        "stablelm2",
        {
            "use_qkv_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        },
        {**EPSILON, "rope.dimension_count": 2},
    ),
    "Gemma 2 27B": (
        "gemma2",
        "default",
        {"num_hidden_layers": 46, "head_dim": 8, "query_pre_attn_scalar": 144, "tie_word_embeddings": True},
        {"attention.key_length": 8, "attention.value_length": 8, "attention.sliding_window": 4096},
    ),
}


@pytest.mark.parametrize(("name", "split", "settings", "keys"), CASES.values(), ids=CASES)
def test_a_file_gives_the_logits_of_the_model_that_was_written(
    tmp_path: Path, name: str, split: str, settings: dict[str, Any], keys: dict[str, float]
) -> None:
    model = Architecture(name, 0, {**SHAPE, **settings}).model()
    path = write_gguf(tmp_path / "m.gguf", model, split, {f"{name}.{key}": value for key, value in keys.items()}, name)
    loaded = load(find(str(path))).model
    assert sum(map(torch.numel, loaded.parameters())) == sum(map(torch.numel, model.parameters()))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)


def test_the_loadable_architectures_are_those_of_the_installed_transformers() -> None:
    """Encoder-decoder models, models without decoder blocks and names that no file has are left out."""
    others = {"general", "tokenizer", "mamba", "mistral", "t5", "umt5"}
    assert {other or name for name, other in LOADABLE.items()} == set(GGUF_SUPPORTED_ARCHITECTURES) - others


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ({"general.architecture": "granite", "granite.block_count": 2}, "the architecture granite"),
        ({"general.architecture": "llama", "llama.block_count": 2, "llama.expert_count": 8}, "a Llama with 8 experts"),
    ],
)
def test_a_file_that_transformers_cannot_load_is_refused_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], value: str
) -> None:
    monkeypatch.setattr("seft.models.source.read_header", lambda *_: (keys, {}))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=f"has {value}. Give the model's folder instead."):
        find("m.gguf", roots=[tmp_path])


def test_gemma_2_27b_scales_its_attention_by_another_number_than_the_smaller_ones() -> None:
    header = {"general.architecture": "gemma2", "gemma2.block_count": 46}
    assert unread_settings(header, []) == {"query_pre_attn_scalar": 144}
    assert unread_settings({**header, "gemma2.block_count": 42}, []) == {}
