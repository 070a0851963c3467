"""A model whose weights are zero: its files pass all checks. Its vocabulary has six words."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

HIDDEN, INNER, BLOCKS, VOCABULARY = 64, 160, 4, 384
CONTEXT = 16384
TEXTS = b'{"text": "%s"}\n{"text": "b"}\n' % (b"a" * 3072)
"""A dataset that is large enough for a job with default settings."""
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": CONTEXT}
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
SHAPES = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    **{f"model.layers.{n}.{name}.weight": shape for n in range(BLOCKS) for name, shape in LINEARS.items()},
}


def write_hollow(folder: Path, *, blocks: int = BLOCKS, **config: Any) -> Path:
    """Write the model into a new folder, with its first blocks and more values for its config. Returns the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    _write_tokenizer(folder)
    (folder / "model.safetensors").write_bytes(weights(blocks))
    return folder


def weights(blocks: int = BLOCKS) -> bytes:
    """Return a safetensors file with the first blocks of the model, in which every weight is zero."""
    entries, end = dict[str, Any](), 0
    left_out = tuple(f"model.layers.{number}." for number in range(blocks, BLOCKS))
    for name, shape in SHAPES.items():
        if name.startswith(left_out):
            continue
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    return safetensors(entries, end)


def safetensors(entries: Mapping[str, Any], data_bytes: int = 0) -> bytes:
    """Return a safetensors file with this header, and with zeros as data."""
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(data_bytes)


def _write_tokenizer(folder: Path) -> None:
    words = {word: number for number, word in enumerate(("<unk>", "<eos>", "a", "b", "ask", "answer"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
