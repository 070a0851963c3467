"""The formats of a published model, and the reasons why other formats would not keep the model. Needs no torch."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from seft.errors import ConfigError

FORMATS = "formats"
"""Name of the setting that lists formats."""


class OutputFormat(StrEnum):
    """A format of a published model. Each keeps every zero exactly.

    `dense` is a Hugging Face folder in bfloat16. Each of the others is one file. `compact` has the files of the folder
    and takes little space for zeros. `compact_int8` and `compact_nf4` have nonzero weights of 8 and 4 bits. The GGUF
    files are for llama.cpp: with the values of the folder (`gguf_bf16`), or with 8 or 4 bits per weight and a scale per
    32 weights.
    """

    DENSE = "dense"
    COMPACT = "compact"
    COMPACT_INT8 = "compact_int8"
    COMPACT_NF4 = "compact_nf4"
    GGUF_BF16 = "gguf_bf16"
    GGUF_Q8_0 = "gguf_q8_0"
    GGUF_Q4_0 = "gguf_q4_0"

    @property
    def file(self) -> str | None:
        """Name of the one file that holds the model, or None for `dense`, which is a folder."""
        return _FILES.get(self)

    @property
    def is_compact(self) -> bool:
        """Whether the file is a compact container."""
        return self.startswith("compact")

    @property
    def rounds(self) -> bool:
        """Whether the values differ from those of the dense folder."""
        return self in _ROUNDING

    @property
    def is_gguf(self) -> bool:
        """Whether the file is a GGUF file."""
        return self.startswith("gguf_")


_FILES = {
    OutputFormat.COMPACT: "model.seft",
    OutputFormat.COMPACT_INT8: "model-int8.seft",
    OutputFormat.COMPACT_NF4: "model-nf4.seft",
    OutputFormat.GGUF_BF16: "model-BF16.gguf",
    OutputFormat.GGUF_Q8_0: "model-Q8_0.gguf",
    OutputFormat.GGUF_Q4_0: "model-Q4_0.gguf",
}
_ROUNDING = frozenset(
    {OutputFormat.COMPACT_INT8, OutputFormat.COMPACT_NF4, OutputFormat.GGUF_Q8_0, OutputFormat.GGUF_Q4_0}
)
_BITS = {
    OutputFormat.DENSE: 16.0,
    OutputFormat.GGUF_BF16: 16.0,
    OutputFormat.GGUF_Q8_0: 8.5,
    OutputFormat.GGUF_Q4_0: 4.5,
}
"""Bits per weight, with the scales. The bits of a compact file also depend on the zeros (`_KEPT_BITS`)."""
_KEPT_BITS = {OutputFormat.COMPACT: 11.0, OutputFormat.COMPACT_INT8: 8.0, OutputFormat.COMPACT_NF4: 4.6}
"""Bits of a nonzero weight in a compact file. In `compact`, these are 8 bits for sign and mantissa, and up to 3
bits for the exponent, which is its entropy in bfloat16 weights. In `compact_nf4`, these are 4 bits, and a part of a
scale of 16 bits. 64 weights share a scale, and zeros count among the 64."""
_SHARED = frozenset({"README.md", "sparsity.json", "manifest.json", "manifest.json.minisig"})
_NOTICE = re.compile(
    r"(LICEN[CS]E|NOTICE|COPYING|COPYRIGHT|USE[_-]POLICY)([_.-][\w.-]{1,60})?", re.ASCII | re.IGNORECASE
)
_REFUSED = {
    "f16": "F16 has a smaller range than bfloat16 and changes small weights",
    "q4_1": "Q4_1 has a minimum per block, so most zeros become small numbers",
    "q5_1": "Q5_1 has a minimum per block, so most zeros become small numbers",
}
_K_QUANTS = "most K-quants have a minimum per block, so zeros become small numbers, and the package gguf writes none"


def parse_format(name: str, allowed: Sequence[OutputFormat] = tuple(OutputFormat)) -> OutputFormat:
    """Return the format of this name. Raises ConfigError with the reason if the format would not keep the model."""
    if name in allowed:
        return OutputFormat(name)
    quantisation = name.lower().removeprefix("gguf_")
    reason = _K_QUANTS if quantisation[2:4] == "_k" else _REFUSED.get(quantisation)
    rule = f"must be one of {', '.join(allowed)}" + (f"; {reason}" if reason else "")
    raise ConfigError(FORMATS, rule, name, _way_out(name, allowed, refused=reason is not None))


def _way_out(name: str, allowed: Sequence[OutputFormat], *, refused: bool) -> str:
    if refused:
        return "Use gguf_q8_0 for a small file that nearly keeps the model."
    if matches := difflib.get_close_matches(name.lower(), allowed, n=1):
        return f"Did you mean {matches[0]}?"
    return "Use compact for a small file with the same values, or gguf_q8_0 for llama.cpp."


def published_bytes(
    formats: Iterable[OutputFormat], weights: int, zeros: int, head: int = 0, targets: int | None = None
) -> int:
    """Return about how many bytes the files of these formats have together.

    The model has `weights` weights, of which `zeros` are zero. `head` of them compute the logits and have at least 8
    bits. `targets` of them are in pruned matrices, by default all; in a compact file the others have at least 8 bits.
    The compact file is usually smaller: the exponents of weights that survive pruning differ less.
    """
    return sum(int(_bits(each, weights, zeros, head, weights if targets is None else targets)) // 8 for each in formats)


def _bits(format_: OutputFormat, weights: int, zeros: int, head: int, targets: int) -> float:
    if format_.is_compact:
        shares = [count / weights for count in (zeros, weights - zeros) if count]
        mask = -sum(share * math.log2(share) for share in shares)  # the entropy of a mask with this share of zeros
        bits = _KEPT_BITS[format_]
        others = max(bits, _KEPT_BITS[OutputFormat.COMPACT_INT8]) * (weights - targets)
        return mask * weights + bits * (targets - zeros) + others
    bits = _BITS[format_]
    return (weights - head) * bits + head * max(bits, _BITS[OutputFormat.GGUF_Q8_0])


def format_of(file: str) -> OutputFormat | None:
    """Return the format to which a published file of this name belongs. None for a file that belongs to all formats."""
    if file in _SHARED or is_notice(file):
        return None
    return next((each for each, name in _FILES.items() if name == file), OutputFormat.DENSE)


def is_notice(file: str) -> bool:
    """Return whether a file of this name has terms of use, such as LICENSE.txt, NOTICE or USE_POLICY.md."""
    return _NOTICE.fullmatch(file) is not None
