"""Which GGUF files transformers can load, and settings of a file that it does not read."""

from collections.abc import Collection, Mapping
from typing import Any

LOADABLE = {
    **dict.fromkeys(("bloom", "deci", "falcon", "gemma2", "gemma3", "gemma4", "gpt2", "lfm2", "llama", "nemotron")),
    **dict.fromkeys(("phi3", "qwen2", "qwen3", "stablelm", "starcoder2")),
    "gpt-oss": "gpt_oss",
    "minimax-m2": "minimax_m2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
}
"""Architectures of the decoder models that the GGUF loader of transformers can load -> their name there, if another."""
BIASES = {
    "attention_bias": frozenset({"blk.0.attn_q.bias", "blk.0.attn_output.bias"}),
    "mlp_bias": frozenset({"blk.0.ffn_up.bias"}),
}
"""Settings of the config of a Llama -> tensors that a file has if the setting is true. The header does not say it."""
BASE = 10_000.0
"""Base of rotary positions that transformers assumes."""
LARGEST_GEMMA2, LARGEST_GEMMA2_SCALAR = 46, 144
"""Number of blocks of Gemma 2 27B, and its `query_pre_attn_scalar`: the hidden size per head. llama.cpp knows the model
by this number too. For the smaller ones, it is the head size, which transformers assumes."""


def require_loadable(header: Mapping[str, Any]) -> None:
    """Raise ValueError if transformers cannot load a GGUF file with this header. The error says what the file has."""
    name = str(header.get("general.architecture"))
    if name not in LOADABLE:
        raise ValueError(f"the architecture {name}")
    if name == "llama" and header.get("llama.expert_count"):
        raise ValueError(f"a Llama with {header['llama.expert_count']} experts")


def unread_settings(header: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Return the settings of a config that follow from the header and the names of the tensors of a GGUF file."""
    name = str(header.get("general.architecture"))
    base = float(header.get(f"{name}.rope.freq_base", BASE))
    match name:
        case "llama":
            return {setting: True for setting, biases in BIASES.items() if not biases.isdisjoint(tensors)}
        case "gemma2" if header.get("gemma2.block_count") == LARGEST_GEMMA2:
            return {"query_pre_attn_scalar": LARGEST_GEMMA2_SCALAR}
        case "starcoder2" if base != BASE:
            return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}
        case "stablelm" if base != BASE:
            head = header[f"{name}.embedding_length"] // header[f"{name}.attention.head_count"]
            share = header.get(f"{name}.rope.dimension_count", head) / head
            return {"rope_parameters": {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}}
        case _:
            return {}
