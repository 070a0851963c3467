"""Verifies a GGUF file with the loader of transformers: settings, vocabulary, values and zeros.

The expected values are those of the package gguf: what it reads back from the values that it wrote.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from gguf.quants import dequantize, quantize

from seft.checkpoint.bfloat16 import to_float32
from seft.checkpoint.gguf_file import Stored, stored_tensors
from seft.config import OutputFormat
from seft.errors import SourceError, VerifyError
from seft.models.gguf_config import head_size, rope_parameters
from seft.models.load import load, load_tokenizer
from seft.models.model_files import CONFIG
from seft.models.source import find

_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
_SAME = 1e-6
"""Largest relative difference of a setting, which the file has as a 32-bit number."""


def verify_gguf(folder: Path, file: Path, format_: OutputFormat) -> None:
    """Verify the file of a format against the checkpoint folder from which it was written. Raises VerifyError."""
    config = json.loads((folder / CONFIG).read_bytes())
    try:
        loaded = load(find(str(file)))
    except SourceError as error:
        raise _broken(file, f"must load as a model: {error}") from None
    _verify_settings(file, config, loaded.model.config)
    vocabulary = load_tokenizer(find(str(folder))).get_vocab()
    found = loaded.tokenizer.get_vocab()
    if missing := [text for text, number in vocabulary.items() if found.get(text) != number]:
        raise _broken(file, f"must have the tokens of the tokenizer; {len(missing)} differ, such as {missing[0]!r}")
    weights = loaded.model.state_dict()
    for tensor in stored_tensors(folder, config, format_):
        _verify_values(file, tensor, weights[tensor.source])


def _verify_settings(file: Path, config: dict[str, Any], found: Any) -> None:
    expected = {name: config.get(name) for name in _SETTINGS} | {
        "head_dim": head_size(config),
        "rope_theta": rope_parameters(config)["rope_theta"],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
    }
    actual = {name: getattr(found, name, None) for name in expected} | {
        "head_dim": head_size(found.to_dict()),
        "rope_theta": rope_parameters(found.to_dict())["rope_theta"],
    }
    for name, value in expected.items():
        if value is not None and not math.isclose(value, actual[name] or 0, rel_tol=_SAME):
            raise _broken(file, f"must have {name} {value}; it has {actual[name]}")


def _verify_values(file: Path, tensor: Stored, weight: torch.Tensor) -> None:
    """Compare a loaded tensor with the one in the folder, some rows at a time, in the order of the folder."""
    rows = weight.view(-1, weight.shape[-1])
    step = tensor.rows_at_once
    for start in range(0, len(rows), step):
        original = to_float32(tensor.bits[start : start + step])
        loaded = rows[start : start + step].numpy()
        if (loaded[original == 0] != 0).any():
            raise _broken(file, f"must keep the zeros of {tensor.source}; some are not zero")
        if not (loaded == dequantize(quantize(original, tensor.kind), tensor.kind)).all():
            raise _broken(file, f"must have the values of {tensor.source} in {tensor.kind.name}; some differ")


def _broken(file: Path, rule: str) -> VerifyError:
    return VerifyError(f"{file.name} {rule}. Create the file again.")
