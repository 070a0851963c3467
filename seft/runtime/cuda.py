"""Products with compressed matrices on CUDA, by Triton kernels. `seft/native/matrix.h` describes the layout.

A program of a kernel has one panel of 8 rows. It reads the masks and the nonzero values of the panel from front to
back, and sums in float32. x is not quantised for int8 values. With `TRITON_INTERPRET=1`, Triton interprets the kernels
on the CPU, which is slow and only for tests.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

PANEL, BLOCK = tl.constexpr(8), tl.constexpr(64)


def multiply(x: Float[Tensor, "batch cols"], matrix: Any) -> Float[Tensor, "batch rows"]:
    """Return x times a transposed `seft.runtime.compressed.Compressed`, plus the bias, in the dtype of x."""
    x = x.contiguous()
    y = torch.empty(len(x), matrix.rows, dtype=torch.float32, device=x.device)
    panels, blocks = matrix.masks.shape[:2]
    scales, bias = (y if each is None else each for each in (matrix.scales, matrix.bias))  # y is not read
    with torch.cuda.device_of(x):  # Triton uses the current device
        _multiply[(panels, len(x))](
            x,
            matrix.masks.view(torch.int64),
            matrix.values,
            matrix.starts,
            scales,
            bias,
            y,
            matrix.rows,
            matrix.cols,
            blocks,
            scaled=matrix.scales is not None,
            biased=matrix.bias is not None,
        )
    return y.to(x.dtype)


def expand(matrix: Any, first: int, last: int) -> Float[Tensor, "rows cols"]:
    """Return the rows from `first`, a multiple of 8, to before `last` in bfloat16, without their scales."""
    dense = torch.empty(last - first, matrix.cols, dtype=torch.bfloat16, device=matrix.values.device)
    blocks = matrix.masks.shape[1]
    masks = matrix.masks.view(torch.int64)
    grid = (triton.cdiv(last - first, PANEL.value),)
    places = (first // PANEL.value, last - first, matrix.cols, blocks)
    with torch.cuda.device_of(dense):
        _expand[grid](masks, matrix.values, matrix.starts, dense, *places)
    return dense


@triton.jit
def _block(masks, values, at, panel, block, blocks):
    """Return the weights of a block of a panel, (PANEL, BLOCK), and the number of its nonzeros. They begin at `at`."""
    rows, bits = tl.arange(0, PANEL), tl.arange(0, BLOCK)
    words = tl.load(masks + (panel * blocks + block) * PANEL + rows)
    kept = ((words[:, None] >> bits[None, :].to(tl.int64)) & 1).to(tl.int32)
    counts = tl.sum(kept, axis=1)
    places = (tl.cumsum(counts, axis=0) - counts)[:, None] + tl.cumsum(kept, axis=1) - kept
    weights = tl.load(values + at + places, mask=kept != 0, other=0)
    return weights.to(tl.float32), tl.sum(counts, axis=0)


@triton.jit
def _multiply(
    x, masks, values, starts, scales, bias, y, rows, cols, blocks, scaled: tl.constexpr, biased: tl.constexpr
):
    panel, token = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    at, total = tl.load(starts + panel), tl.zeros((PANEL,), tl.float32)
    for block in range(blocks):
        weights, count = _block(masks, values, at, panel, block, blocks)
        column = block * BLOCK + tl.arange(0, BLOCK)
        part = tl.load(x + token * cols + column, mask=column < cols, other=0).to(tl.float32)
        total += tl.sum(weights * part[None, :], axis=1)
        at += count
    row = panel * PANEL + tl.arange(0, PANEL)
    if scaled:
        total *= tl.load(scales + row, mask=row < rows, other=0)
    if biased:
        total += tl.load(bias + row, mask=row < rows, other=0)
    tl.store(y + token * rows + row, total, mask=row < rows)


@triton.jit
def _expand(masks, values, starts, dense, first, rows, cols, blocks):
    panel = tl.program_id(0).to(tl.int64)
    at = tl.load(starts + first + panel)
    row = panel * PANEL + tl.arange(0, PANEL)
    for block in range(blocks):
        weights, count = _block(masks, values, at, first + panel, block, blocks)
        column = block * BLOCK + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (column < cols)[None, :]
        tl.store(dense + row[:, None] * cols + column[None, :], weights.to(tl.bfloat16), mask=inside)
        at += count
