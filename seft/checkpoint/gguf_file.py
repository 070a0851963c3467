"""Writes a checkpoint folder as one GGUF file, tensor by tensor to a stream. Needs no torch.

Matrices get the type of the format. Vectors, such as norms, are float32, as llama.cpp requires. A matrix whose columns
do not fill blocks of 32 stays bfloat16. The file depends only on the folder and the format.

Zeros stay zeros: the types have one scale per block and no minimum, so a zero is stored as the integer 0. BF16 has
no scale and stores zeros as they are.
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.constants import GGUF_DEFAULT_ALIGNMENT
from gguf.gguf_writer import WriterState
from gguf.quants import quant_shape_to_byte_shape, quantize

from seft.checkpoint.bfloat16 import Bits, Floats, to_float32
from seft.checkpoint.facts import SPARSITY, Record
from seft.checkpoint.folder import tensors
from seft.checkpoint.gguf_tokenizer import add_tokenizer
from seft.config import FORMATS, OutputFormat
from seft.errors import ConfigError
from seft.models.gguf_config import PERMUTED, metadata, require_expressible, rope_factors
from seft.models.model_files import CONFIG

BLOCK = 32
"""Weights of a row that share a scale."""
CHUNK = 1 << 22
"""Weights that are converted at a time, so that memory use does not depend on the size of a tensor."""
_TYPES = {
    OutputFormat.GGUF_BF16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    OutputFormat.GGUF_Q8_0: (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    OutputFormat.GGUF_Q4_0: (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_HEADS = {"attn_q.weight": "num_attention_heads", "attn_k.weight": "num_key_value_heads"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the folder, and how a GGUF file stores it. `source` is its name in the folder."""

    source: str
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    bits: Bits
    """The bfloat16 values as integers, (rows, cols). A vector is one row."""
    order: np.ndarray[Any, np.dtype[np.int64]]
    """Rows of the folder in the order of the file."""

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        return math.prod(quant_shape_to_byte_shape(self.shape, self.kind))

    @property
    def rows_at_once(self) -> int:
        """Number of rows that are converted at a time."""
        return max(1, CHUNK // int(self.bits.shape[1]))

    def chunks(self) -> Iterator[Floats]:
        """Yield the values in the order of the file, some rows at a time. -0.0 becomes 0.0."""
        for start in range(0, len(self.order), self.rows_at_once):
            yield to_float32(self.bits[self.order[start : start + self.rows_at_once]])


def write(folder: Path, format_: OutputFormat, sink: BinaryIO) -> None:
    """Write the model in a checkpoint folder to a stream, from start to end.

    Raises ConfigError if GGUF or llama.cpp cannot express the model or its tokenizer.
    """
    config = json.loads((folder / CONFIG).read_bytes())
    stored = stored_tensors(folder, config, format_)
    sink.write(beginning(folder, config, format_, stored))
    for tensor in stored:
        for chunk in tensor.chunks():
            if not np.isfinite(chunk).all():
                rule, way_out = "must have finite weights", "Create the model again."
                raise ConfigError("folder", rule, tensor.source, way_out, lead="some are not in")
            sink.write(quantize(chunk, tensor.kind).tobytes())
        sink.write(bytes(-tensor.bytes % GGUF_DEFAULT_ALIGNMENT))


def beginning(folder: Path, config: dict[str, Any], format_: OutputFormat, stored: list[Stored]) -> bytes:
    """Return the bytes of the file before the values of `stored`: the header, and the factors of the rotations."""
    factors = _rope_tensor(config)
    return _padded(_header(folder, config, format_, stored)) + (b"" if factors is None else _padded(factors.tobytes()))


def value_bytes(stored: list[Stored]) -> int:
    """Return the number of bytes of a file after its `beginning`: the values, with the padding after each tensor."""
    return sum(tensor.bytes + -tensor.bytes % GGUF_DEFAULT_ALIGNMENT for tensor in stored)


def stored_tensors(folder: Path, config: dict[str, Any], format_: OutputFormat) -> list[Stored]:
    """Return the tensors of a folder in the order in which the file of this format has them. Reads no values.

    Raises ConfigError if a GGUF file cannot express the model.
    """
    architecture = require_expressible(config)
    kind = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config["num_hidden_layers"])
    matrix = _TYPES[format_][0]
    tied, found = bool(config.get("tie_word_embeddings")), list[Stored]()
    for content, source, tensor in tensors(folder):
        if tied and source == "lm_head.weight":
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None or tensor.dtype != "BF16" or len(tensor.shape) > 2:
            rule = "may contain GGUF only for vectors and matrices in bfloat16 that llama.cpp knows"
            raise ConfigError(FORMATS, rule, f"{source} ({tensor.dtype})", "Use the format dense.", lead="this one has")
        bits = content[tensor.begin : tensor.end].view(np.uint16).reshape(-1, tensor.shape[-1])
        head = name == "output.weight" or (tied and name == "token_embd.weight")
        order = _row_order(name, len(bits), config) if architecture in PERMUTED else np.arange(len(bits))
        found.append(Stored(source, name, tuple(tensor.shape), _kind(tensor.shape, matrix, head=head), bits, order))
    return found


def _kind(shape: tuple[int, ...], matrix: GGMLQuantizationType, *, head: bool) -> GGMLQuantizationType:
    """Return the type of a tensor. The matrix that computes the logits has at least 8 bits, as in llama.cpp."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if shape[-1] % BLOCK:
        return GGMLQuantizationType.BF16
    return GGMLQuantizationType.Q8_0 if head and matrix is GGMLQuantizationType.Q4_0 else matrix


def _row_order(name: str, rows: int, config: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the numbers of the rows of a matrix in the order of GGUF.

    llama.cpp rotates pairs of neighbouring rows in queries and keys. The folder has these pairs in two halves.
    """
    rotated = next((key for end, key in _HEADS.items() if name.endswith(end)), None)
    numbers = np.arange(rows)
    if rotated is None:
        return numbers
    heads = config.get(rotated) or config["num_attention_heads"]
    return numbers.reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _rope_tensor(config: dict[str, Any]) -> Floats | None:
    factors = rope_factors(config)
    return None if factors is None else np.asarray(factors, np.float32)


def _header(folder: Path, config: dict[str, Any], format_: OutputFormat, stored: list[Stored]) -> bytes:
    """Return the bytes of the file before the values: the keys, and the name, shape, type and place of each tensor."""
    keys = metadata(config)
    writer = GGUFWriter(None, require_expressible(config))
    writer.add_type("model")
    if (folder / SPARSITY).exists():
        base = Record.read(folder).facts.base
        writer.add_name(base.reference)
        writer.add_license(base.licence or "")
    writer.add_file_type(_TYPES[format_][1])
    writer.add_quantization_version(2)
    for key, value in keys.items():
        match value:
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    add_tokenizer(writer, folder, config["vocab_size"])
    factors = _rope_tensor(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in stored:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=tensor.kind)
    return _written(writer)


def _written(writer: GGUFWriter) -> bytes:
    """Return the bytes that a writer writes before the values. It writes them to a file in memory."""
    file = io.BytesIO()
    writer.fout, writer.state = [file], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return file.getvalue()


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % GGUF_DEFAULT_ALIGNMENT)
