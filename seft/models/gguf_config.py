"""What a GGUF file says about a model instead of config.json, and which models it can express. Needs no torch.

llama.cpp defines the names of the keys (github.com/ggml-org/ggml/blob/master/docs/gguf.md). A setting is refused if the
file cannot express it, or if the loaders of transformers and llama.cpp would ignore it. Otherwise the file would
contain a different model.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from seft.config import FORMATS, OutputFormat
from seft.errors import ConfigError
from seft.models.gguf_positions import llama3_factors, llama3_parameters
from seft.models.source import Kind, ModelSource

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architecture in config.json -> architecture in a GGUF file. A Mistral without a window is a Llama."""
PERMUTED = frozenset({"llama"})
"""Architectures whose query and key rows have another order in GGUF, because llama.cpp rotates pairs of neighbours."""
_SCALINGS = frozenset({"default", "linear", "llama3"})
_QWEN3_HEAD = 128
"""Size of a head that the loader of transformers assumes for qwen3, because it reads none from the file."""
_WAY_OUT = "Use the format dense."

Value = int | float | str


def require_formats(formats: Iterable[OutputFormat], source: ModelSource) -> None:
    """Raise ConfigError if one of the formats cannot express a model. Reads no tokenizer."""
    if not any(each.is_gguf for each in formats):
        return
    if source.kind is not Kind.GGUF:
        require_expressible(source.config)
    elif (name := str(source.config.get("general.architecture"))) not in ARCHITECTURES.values():
        raise _unknown_architecture(name)


def require_expressible(config: Mapping[str, Any]) -> str:
    """Return the architecture that a GGUF file has for a model. Raises ConfigError if it cannot express the model.

    `config` is the content of config.json.
    """
    try:
        architecture = str(config["architectures"][0])
        if architecture not in ARCHITECTURES:
            raise _unknown_architecture(architecture)
        _require_plain_layers(ARCHITECTURES[architecture], config)
        _require_known_positions(config)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _inexpressible("a complete config.json", f"{type(error).__name__}: {error}") from error
    return ARCHITECTURES[architecture]


def _unknown_architecture(name: str) -> ConfigError:
    return _inexpressible(f"an architecture of {', '.join(ARCHITECTURES)}", name)


def _require_plain_layers(name: str, config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise _inexpressible("the activation silu", f"hidden_act {activation}")
    for bias in ("attention_bias", "mlp_bias"):
        if config.get(bias) and name != "qwen2":
            raise _inexpressible("linear layers without biases", bias)
    window, context = config.get("sliding_window"), config["max_position_embeddings"]
    if window is not None and config.get("use_sliding_window") is not False and window < context:
        raise _inexpressible("attention to the whole context", f"sliding_window {window}")
    head, full = head_size(config), config["hidden_size"] // config["num_attention_heads"]
    if name == "qwen2" and head != full:
        raise _inexpressible(f"heads of {full} values", f"head_dim {head}")
    if name == "qwen3" and head != _QWEN3_HEAD:
        raise _inexpressible(f"heads of {_QWEN3_HEAD} values", f"head_dim {head}")


def _require_known_positions(config: Mapping[str, Any]) -> None:
    rope = rope_parameters(config)
    kind = rope.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise _inexpressible(f"a rope_type of {', '.join(sorted(_SCALINGS))}", str(kind))
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _inexpressible("rotary positions in whole heads", "a partial_rotary_factor")
    if kind == "linear" and not 0 < rope["factor"] < math.inf:
        raise _inexpressible("a finite factor of positions", f"factor {rope['factor']}")
    if kind == "llama3" and not llama3_parameters(llama3_factors(rope, head_size(config)), rope["rope_theta"]):
        raise _inexpressible("positions that a loader can restore from factors", f"rope_parameters {dict(rope)}")


def _inexpressible(rule: str, value: str) -> ConfigError:
    return ConfigError(FORMATS, f"may contain GGUF only for a model with {rule}", value, _WAY_OUT, lead="this one has")


def head_size(config: Mapping[str, Any]) -> int:
    """Return the number of values of an attention head."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(size)


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the rotary positions. Older configurations spread them over two keys."""
    older = config.get("rope_scaling") or {}
    kind = older.get("rope_type", older.get("type", "default"))
    found = config.get("rope_parameters") or {**older, "rope_type": kind}
    return {"rope_theta": config.get("rope_theta", 10_000.0), **found}


def metadata(config: Mapping[str, Any]) -> dict[str, Value]:
    """Return the keys about a model by name. An int is an unsigned 32-bit integer in the file, a float has 32 bits.

    Raises ConfigError if a GGUF file cannot express the model.
    """
    name = require_expressible(config)
    head, rope = head_size(config), rope_parameters(config)
    values: dict[str, Value] = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope.get("rope_type") == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return {f"{name}.{key}": value for key, value in values.items()}


def rope_factors(config: Mapping[str, Any]) -> list[float] | None:
    """Return the divisor of each rotary frequency of Llama 3.1, or None for a model that has none.

    `config` must have passed `require_expressible`.
    """
    rope = rope_parameters(config)
    if rope.get("rope_type") != "llama3":
        return None
    return llama3_factors(rope, head_size(config))
