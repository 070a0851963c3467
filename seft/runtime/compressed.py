"""A matrix with its nonzero values only: masks of 64 columns and packed values, in panels of 8 rows.

`seft/native/matrix.h` describes the layout. int8 values have one scale per row: a weight is `value * scale`, and the
scale is the row's largest magnitude / 127. Zeros stay exact in both kinds. With int8 values, x is quantised to 12 bits
per row (token).
"""

import ctypes
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8, Int64, Shaped, UInt8
from torch import Tensor

from seft.errors import AccelerateError
from seft.native import kernels
from seft.runtime.huge_pages import HugePages

PANEL, BLOCK = 8, 64
MAX_INT8_COLS = 32768
"""Most columns that the kernels multiply with int8 values, so that no partial sum of integers overflows."""
READ_AHEAD = 64
"""Values after the last one that a kernel may read."""
EXPANDED_FROM = 24
"""Rows of x from which expanding the matrix and multiplying with torch is faster. See docs/runtime.md."""
SLICE_BYTES = 4 << 20
"""Size of the part of a matrix that is expanded at once, so that it stays in the cache."""


class Values(StrEnum):
    """How nonzero weights are stored."""

    BFLOAT16 = "bfloat16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A compressed matrix. `struct` has the addresses of the tensors on the CPU, so these tensors must not move."""

    rows: int
    cols: int
    masks: UInt8[Tensor, "panels blocks panel bytes"]
    values: Shaped[Tensor, "nonzeros_and_read_ahead"]
    starts: Int64[Tensor, "panels"]
    scales: Float[Tensor, "rows"] | None
    bias: Float[Tensor, "rows"] | None
    struct: kernels.Matrix

    def to(self, device: torch.device) -> "Compressed":
        """Return the matrix on another device. Raises AccelerateError if Triton cannot compile for it."""
        if device.type == "cpu":
            return self
        if not kernels.can_compile_for_cuda():
            raise AccelerateError(
                "products on CUDA need the package triton, a C compiler and the headers of Python. Run pip install"
                " triton and install gcc and python3-dev, or use the CPU."
            )
        names = ("masks", "values", "starts", "scales", "bias")
        parts = {name: part.to(device) for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **parts, struct=kernels.Matrix())  # no kernel of the CPU reads it

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.masks, self.values, self.starts, self.scales, self.bias)
        return sum(each.nbytes for each in arrays if each is not None)


def compress(
    weight: Float[Tensor, "rows cols"],
    bias: Float[Tensor, "rows"] | None = None,
    values: Values = Values.BFLOAT16,
    memory: HugePages | None = None,
) -> Compressed:
    """Compress a matrix, into `memory` if given.

    Raises AccelerateError if bfloat16 is asked for and does not hold its values exactly.
    """
    rows, cols = weight.shape
    scales = None
    nonzero = weight != 0
    stored: Tensor
    match values:
        case Values.BFLOAT16:
            require_exact(weight)
            stored = weight.to(torch.bfloat16)
        case Values.INT8:
            stored, scales = quantise(weight)
    panelled = _panels(nonzero)
    # numpy, because torch makes indices of 32 bytes per nonzero first.
    whole = _panels(stored.view(torch.int16) if scales is None else stored)
    packed = torch.from_numpy(whole.numpy()[panelled.numpy()]).view(stored.dtype)
    counts = panelled.flatten(1).sum(dim=1)
    masks = torch.from_numpy(np.packbits(panelled.numpy(), axis=-1, bitorder="little"))
    packed = torch.cat((packed, torch.zeros(READ_AHEAD, dtype=packed.dtype)))
    if memory:
        masks, packed = memory.copy(masks), memory.copy(packed)
    starts = counts.cumsum(0) - counts
    bias = None if bias is None else bias.detach().float().contiguous()
    struct = _struct(rows, cols, masks=masks, values=packed, starts=starts, scales=scales, bias=bias)
    return Compressed(rows, cols, masks, packed, starts, scales, bias, struct)


def require_exact(weight: Float[Tensor, "rows cols"]) -> None:
    """Raise AccelerateError if bfloat16 does not hold the values of a matrix exactly."""
    for rows in torch.split(weight, 256):  # a few rows at a time, to save memory
        if not torch.equal(rows.to(torch.bfloat16).to(rows.dtype), rows):
            raise AccelerateError(
                f"weights must be bfloat16 values; some of this {weight.dtype} matrix are not. Load the model again"
                " with dtype=torch.bfloat16 (--dtype bfloat16), or use values='int8' (--values int8)."
            )


def dense_struct(weight: Float[Tensor, "rows cols"], bias: Float[Tensor, "rows"] | None) -> kernels.Matrix:
    """Return the struct of a bfloat16 matrix that is not compressed. Its columns are a multiple of BLOCK."""
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous()
    assert weight.shape[1] % BLOCK == 0
    return _struct(len(weight), weight.shape[1], values=weight, bias=bias)


def quantise(weight: Float[Tensor, "rows cols"]) -> tuple[Int8[Tensor, "rows cols"], Float[Tensor, "rows"]]:
    """Return int8 values from -127 to 127 and the scale of each row. The values are the nearest to weight / scale."""
    scales = weight.abs().amax(dim=1).float() / 127
    divisors = torch.where(scales > 0, scales, 1)
    return (weight.float() / divisors[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales


def _struct(rows: int, cols: int, **parts: Tensor | None) -> kernels.Matrix:
    addresses = {name: part.data_ptr() for name, part in parts.items() if part is not None}
    return kernels.Matrix(rows=rows, cols=cols, **addresses)


def _panels(matrix: Shaped[Tensor, "rows cols"]) -> Shaped[Tensor, "panels blocks panel block"]:
    rows, cols = matrix.shape
    padded = F.pad(matrix, (0, -cols % BLOCK, 0, -rows % PANEL))
    return padded.view(-1, PANEL, padded.shape[1] // BLOCK, BLOCK).permute(0, 2, 1, 3).contiguous()


def expand(matrix: Compressed, first: int = 0, last: int | None = None) -> Tensor:
    """Return the rows from `first`, a multiple of PANEL, to before `last` as a dense bfloat16 matrix.

    int8 values are returned without their scales, because bfloat16 can hold them exactly.
    """
    last = matrix.rows if last is None else last
    if matrix.values.device.type == "cuda":
        from seft.runtime import cuda

        return cuda.expand(matrix, first, last)
    if library := kernels.library():
        dense = torch.empty(last - first, matrix.cols, dtype=torch.bfloat16)
        library.seft_expand(ctypes.addressof(matrix.struct), first, last, dense.data_ptr(), torch.get_num_threads())
        return dense
    panels = slice(first // PANEL, -(-last // PANEL))
    bits: Bool[Tensor, "panels blocks panel block"]
    bits = torch.from_numpy(np.unpackbits(matrix.masks[panels].numpy(), axis=-1, bitorder="little")).bool()
    start = int(matrix.starts[panels.start])
    filled = torch.zeros(bits.shape, dtype=torch.bfloat16)
    filled[bits] = matrix.values[start : start + int(bits.sum())].to(torch.bfloat16)
    return filled.permute(0, 2, 1, 3).reshape(-1, bits.shape[1] * BLOCK)[: last - first, : matrix.cols]


def multiply(x: Float[Tensor, "batch cols"], matrix: Compressed) -> Float[Tensor, "batch rows"]:
    """Return x times the transposed matrix, plus the bias, in the dtype of x: bfloat16 or float32.

    Many rows of x are multiplied with the expanded matrix. For int8 weights, x is then not quantised.
    """
    if len(x) >= EXPANDED_FROM:
        return _multiply_expanded(x, matrix)
    if matrix.values.device.type == "cuda":
        from seft.runtime import cuda

        return cuda.multiply(x, matrix)
    if kernels.library() is None or (matrix.scales is not None and matrix.cols > MAX_INT8_COLS):
        return _multiply_expanded(x, matrix)
    return multiply_struct(x, matrix.struct)


def multiply_struct(x: Float[Tensor, "batch cols"], struct: kernels.Matrix) -> Float[Tensor, "batch rows"]:
    """Return x times a transposed matrix by the compiled kernels."""
    dtype = kernels.DTYPES.get(x.dtype)
    if dtype is None or x.device.type != "cpu" or x.shape[1] != struct.cols:
        raise AccelerateError(
            f"x must be bfloat16 or float32 on the CPU with {struct.cols} columns; it is {x.dtype} on {x.device} with"
            f" {x.shape[1]}. Move or convert the model."
        )
    x = x.contiguous()
    y = x.new_empty(len(x), struct.rows)
    threads = torch.get_num_threads()
    if kernels.library().seft_multiply(ctypes.addressof(struct), x.data_ptr(), y.data_ptr(), len(x), dtype, threads):
        raise MemoryError(f"no memory for a copy of x with {len(x)} rows and {struct.cols} columns")
    return y


def _multiply_expanded(x: Float[Tensor, "batch cols"], matrix: Compressed) -> Float[Tensor, "batch rows"]:
    y = x.new_empty(len(x), matrix.rows)
    step = max(PANEL, SLICE_BYTES // (2 * matrix.cols) // PANEL * PANEL)
    for first in range(0, matrix.rows, step):
        last = min(first + step, matrix.rows)
        weight, bias = expand(matrix, first, last).to(x.dtype), None
        if matrix.bias is not None:
            bias = matrix.bias[first:last]
        if matrix.scales is None:
            y[:, first:last] = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        else:
            scaled = F.linear(x, weight).float() * matrix.scales[first:last]
            y[:, first:last] = scaled if bias is None else scaled + bias
    return y
