"""Writes GGUF files like llama.cpp's converter, with the tokenizer of `tests.tiny`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from tests.tiny import tiny_tokenizer


def write_gguf(
    path: Path, model: Any, split: str | None = None, keys: Mapping[str, float] | None = None, name: str = "llama"
) -> Path:
    """Write a model of the architecture `name` to a file, and return the path.

    `split` is the name of the rule to split text. `keys` are further keys of the header.
    """
    config = model.config
    bpe = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].__getitem__))
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(bpe["vocab"]) - 2))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_eos_token_id(1)
    for key, value in (keys or {}).items():
        _add_key(writer, key, value)
    _add_tensors(writer, model, name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_key(writer: gguf.GGUFWriter, key: str, value: float) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _add_tensors(writer: gguf.GGUFWriter, model: Any, name: str) -> None:
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    for weight_name, weight in model.named_parameters():
        module, _, kind = weight_name.rpartition(".")
        values = weight.detach()
        if name == "llama":
            values = _rotary_order(module, values, model.config)
        elif name == "gemma2" and "norm" in module:
            values = values + 1
        writer.add_tensor(f"{names.get_name(module)}.{kind}", values.contiguous().numpy())


def _rotary_order(module: str, weight: Tensor, config: Any) -> Tensor:
    """Return the rows of a query or key matrix, or the values of its bias, in the order of llama.cpp."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(module.rpartition(".")[2])
    if heads is None:
        return weight
    pairs = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)
