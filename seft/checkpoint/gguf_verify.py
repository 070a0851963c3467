"""Verifies a GGUF file with the loader of transformers: settings, vocabulary, tokens of texts, values and zeros.

The bytes that the loader does not use are compared with the bytes that the folder gives. The expected values are
computed by the package gguf: it converts the values of the folder and reads them back.

The loader needs a file on disk. It gets a file with the header and the factors of the rotary positions. The other
values are a hole in this file, which takes no space. The loader reads them from the real file, one tensor at a time.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer

from seft.checkpoint.bfloat16 import to_float32
from seft.checkpoint.compact.byte_sources import ByteSource, blocks
from seft.checkpoint.gguf_file import Stored, beginning, stored_tensors, value_bytes
from seft.config import OutputFormat
from seft.errors import SourceError, VerifyError
from seft.models.gguf_config import head_size, rope_parameters
from seft.models.gguf_tokenizer import tokenizer_rules
from seft.models.limits import MAX_HEADERS_BYTES
from seft.models.load import load
from seft.models.model_files import CONFIG, TOKENIZER
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
_TEXTS = (
    "a  1 b   23",
    "if x:\n        20 + y\r\n\n\t\tz",
    " a space before it",
    "Cafe\u0301, A\u030angstro\u0308m",
    "I'll, WE'LL (don't) pay $1,234.50 -- \u00bd of x_1!",
    "Привет мир, γειά, שלום, سلام ١٢٣, हिन्दी ४५, ไทย, 你好世界2024年, かな, 한국어 🙂",
)
"""Texts on which rules to split text differ: spaces before digits, indentation, accents of two characters, scripts."""
_SAME = 1e-6
"""Largest relative difference of a setting, which the file has as a 32-bit number."""


class _LazyTensor:
    """A tensor of a GGUF file. Its values are read when the loader asks for them."""

    def __init__(self, place: ReaderTensor, source: ByteSource) -> None:
        self.name, self.tensor_type = place.name, place.tensor_type
        self._place, self._source = place, source

    @property
    def data(self) -> np.ndarray[Any, Any]:
        """The stored values."""
        begin, hole = int(self._place.data_offset), self._place.data
        content, at = np.empty(hole.nbytes, np.uint8), 0
        for block in blocks(self._source, begin, len(content)):
            content[at : at + len(block)] = np.frombuffer(block, np.uint8)
            at += len(block)
        values: np.ndarray[Any, Any] = content.view(hole.dtype).reshape(hole.shape)
        return values


def verify_gguf(folder: Path, source: ByteSource, format_: OutputFormat) -> None:
    """Verify the file of a format against the checkpoint folder from which it was written. Raises VerifyError."""
    config = json.loads((folder / CONFIG).read_bytes())
    stored = stored_tensors(folder, config, format_)
    file = Path(source.name)
    try:
        with _header_on_disk(source, source.size - value_bytes(stored)) as path, _values_of(source):
            loaded = load(find(str(path)))
    except SourceError as error:
        raise _broken(file, f"must load as a model: {error}") from None
    _verify_settings(file, config, loaded.model.config)
    _verify_tokenizer(file, folder, loaded.tokenizer.backend_tokenizer)
    expected = beginning(folder, config, format_, stored)
    if source.read(0, len(expected)) != expected:
        raise _broken(file, f"must begin with the {len(expected)} bytes that belong to the folder; some differ")
    weights = loaded.model.state_dict()
    for tensor in stored:
        _verify_values(file, tensor, weights[tensor.source])


@contextmanager
def _header_on_disk(source: ByteSource, size: int) -> Iterator[Path]:
    """Yield a file with the header of a GGUF file. The header has `size` bytes. The rest of the file is a hole."""
    file = Path(source.name)
    if not 0 < size <= MAX_HEADERS_BYTES:
        raise _broken(file, f"must have the bytes of its tensors and a header; it has {source.size} bytes")
    with TemporaryDirectory(prefix="seft-gguf-") as name:
        path = Path(name, file.name)
        with path.open("wb") as header:
            header.write(source.read(0, size))
            header.truncate(source.size)
        yield path


@contextmanager
def _values_of(source: ByteSource) -> Iterator[None]:
    """Let the loader of transformers read the values of tensors from `source` while the `with` block runs."""
    before = gguf.GGUFReader

    def read(path: Path) -> gguf.GGUFReader:
        reader: Any = before(path)
        reader.tensors = [_LazyTensor(place, source) for place in reader.tensors]
        return reader

    gguf.GGUFReader = read
    try:
        yield
    finally:
        gguf.GGUFReader = before


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
    kind, other = _positions(config), _positions(found.to_dict())
    if kind != other:
        raise _broken(file, f"must have positions of the type {kind}; it has {other}")
    for name, value in expected.items():
        if value is not None and not math.isclose(value, actual[name] or 0, rel_tol=_SAME):
            raise _broken(file, f"must have {name} {value}; it has {actual[name]}")


def _verify_tokenizer(file: Path, folder: Path, found: Tokenizer) -> None:
    """Compare the vocabulary, and the tokens of some texts, with those of the tokenizer in the folder."""
    expected = Tokenizer.from_file(str(folder / TOKENIZER))
    expected.no_padding()
    expected.no_truncation()
    numbers = found.get_vocab()
    if missing := [text for text, number in expected.get_vocab().items() if numbers.get(text) != number]:
        raise _broken(file, f"must have the tokens of the tokenizer; {len(missing)} differ, such as {missing[0]!r}")
    rules = tokenizer_rules(json.loads(expected.to_str()))
    for text in _TEXTS:
        inexpressible = rules.keeps_space and text.startswith(" ")
        if not inexpressible and found.encode(text).ids != expected.encode(text).ids:
            raise _broken(file, f"must split a text into the tokens of the tokenizer; {text!r} has other tokens")


def _positions(config: dict[str, Any]) -> str:
    """Return how positions are scaled. A factor of 1 has no effect."""
    rope = rope_parameters(config)
    return "default" if rope.get("factor") == 1 else str(rope.get("rope_type", "default"))


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
