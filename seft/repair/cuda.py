"""Triton kernels of the repair on CUDA: selected entries of a product, and the passes of `seft.repair.passes`.

Sums are float32. With `TRITON_INTERPRET=1`, Triton interprets the kernels on the CPU, which is slow and only for tests.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from seft.repair.rounding import DROPPED_BITS, signed

ENTRIES, TOKENS = tl.constexpr(64), tl.constexpr(64)
ROWS, COLS = tl.constexpr(32), tl.constexpr(128)
"""Rows and columns of a weight matrix in a program of the passes."""


def sample(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], positions: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """Return the entries of `left^T right` at flat positions `row * cols + col`, in float32.

    As on the CPU, the columns of both matrices are copied first, so that the tokens of a column follow each other. A
    program of the kernel has 64 entries. There is no product of whole matrices.
    """
    entries = torch.empty(len(positions), dtype=torch.float32, device=left.device)
    if len(positions):
        grid = (triton.cdiv(len(positions), ENTRIES.value),)
        columns = left.t().contiguous(), right.t().contiguous()
        with torch.cuda.device_of(left):  # Triton uses the current device
            _sample[grid](*columns, positions, entries, len(positions), left.shape[0], right.shape[1])
    return entries


def square_sums(
    weight: Float[Tensor, "rows cols"], gradient: Float[Tensor, "rows cols"]
) -> tuple[Float[Tensor, "rows"], Float[Tensor, "cols"]]:
    """Set the gradient to zero at the zeros of the weight. Return the sums of its squares in each row and column."""
    (rows, cols), grid = weight.shape, _grid(weight)
    row_sums = torch.empty(grid[1], rows, dtype=torch.float32, device=weight.device)
    col_sums = torch.empty(grid[0], cols, dtype=torch.float32, device=weight.device)
    with torch.cuda.device_of(weight):
        _square_sums[grid](weight, gradient, row_sums, col_sums, rows, cols)
    return row_sums.sum(0), col_sums.sum(0)


def scaled_square_sum(
    gradient: Float[Tensor, "rows cols"], row_scales: Float[Tensor, "rows"], col_scales: Float[Tensor, "cols"]
) -> Float[Tensor, ""]:
    """Return the sum of the squares of the gradient, each entry multiplied by the scales of its row and column."""
    grid = _grid(gradient)
    sums = torch.empty(grid, dtype=torch.float32, device=gradient.device)
    with torch.cuda.device_of(gradient):
        _scaled_square_sum[grid](gradient, row_scales, col_scales, sums, *gradient.shape)
    return sums.sum()


def change(
    weight: Float[Tensor, "rows cols"],
    gradient: Float[Tensor, "rows cols"],
    row_scales: Float[Tensor, "rows"],
    col_scales: Float[Tensor, "cols"],
    random: int,
) -> None:
    """Subtract the scaled gradient from the weight in place, and round by the random number of 64 bits.

    A row whose scale is zero does not change.
    """
    halves = signed(random), signed(random >> 32)
    dropped = DROPPED_BITS.get(weight.dtype, 0)
    with torch.cuda.device_of(weight):
        _change[_grid(weight)](weight, gradient, row_scales, col_scales, *halves, *weight.shape, dropped)


def _grid(matrix: Float[Tensor, "rows cols"]) -> tuple[int, int]:
    return triton.cdiv(matrix.shape[0], ROWS.value), triton.cdiv(matrix.shape[1], COLS.value)


@triton.jit
def _sample(left, right, positions, entries, count, tokens, cols):
    at = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = at < count
    position = tl.load(positions + at, mask=inside, other=0).to(tl.int64)
    row, col = position // cols * tokens, position % cols * tokens
    total = tl.zeros((ENTRIES,), tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        read = inside[:, None] & (token < tokens)[None, :]
        one = tl.load(left + row[:, None] + token[None, :], mask=read, other=0).to(tl.float32)
        two = tl.load(right + col[:, None] + token[None, :], mask=read, other=0).to(tl.float32)
        total += tl.sum(one * two, axis=1)
    tl.store(entries + at, total, mask=inside)


@triton.jit
def _tile(rows, cols):
    """Return the rows and columns of a program, the places of its entries, and which of them exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    at = row.to(tl.int64)[:, None] * cols + col[None, :]
    return row, col, at, (row < rows)[:, None] & (col < cols)[None, :]


@triton.jit
def _square_sums(weight, gradient, row_sums, col_sums, rows, cols):
    row, col, at, inside = _tile(rows, cols)
    kept = (tl.load(weight + at, mask=inside, other=0) != 0).to(tl.float32)
    masked = tl.load(gradient + at, mask=inside, other=0).to(tl.float32) * kept
    tl.store(gradient + at, masked, mask=inside)
    squares = masked * masked
    tl.store(row_sums + tl.program_id(1).to(tl.int64) * rows + row, tl.sum(squares, axis=1), mask=row < rows)
    tl.store(col_sums + tl.program_id(0).to(tl.int64) * cols + col, tl.sum(squares, axis=0), mask=col < cols)


@triton.jit
def _scaled(gradient, row_scales, col_scales, row, col, at, inside, rows, cols):
    """Return the entries of the gradient in float32, multiplied by the scales of their rows and columns."""
    by_row = tl.load(row_scales + row, mask=row < rows, other=0)
    by_col = tl.load(col_scales + col, mask=col < cols, other=0)
    return tl.load(gradient + at, mask=inside, other=0).to(tl.float32) * by_col[None, :] * by_row[:, None]


@triton.jit
def _scaled_square_sum(gradient, row_scales, col_scales, sums, rows, cols):
    row, col, at, inside = _tile(rows, cols)
    scaled = _scaled(gradient, row_scales, col_scales, row, col, at, inside, rows, cols)
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(scaled * scaled))


@triton.jit(do_not_specialize=["low", "high"])
def _change(weight, gradient, row_scales, col_scales, low, high, rows, cols, dropped: tl.constexpr):
    row, col, at, inside = _tile(rows, cols)
    scaled = _scaled(gradient, row_scales, col_scales, row, col, at, inside, rows, cols)
    used = inside & (tl.load(row_scales + row, mask=row < rows, other=0) != 0)[:, None]
    changed = tl.load(weight + at, mask=inside, other=0).to(tl.float32) - scaled
    if dropped:
        random = _random_bits(at.to(tl.uint32), low.to(tl.uint32), high.to(tl.uint32)) & ((1 << dropped) - 1)
        bits = changed.to(tl.uint32, bitcast=True) + random
        changed = (bits >> dropped << dropped).to(tl.float32, bitcast=True)
    tl.store(weight + at, changed, mask=used)


@triton.jit
def _random_bits(index, low, high):
    """Return the random bits of `seft.repair.rounding`."""
    bits = index ^ low
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D ^ high
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)
