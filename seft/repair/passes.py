"""The three passes of a step of `seft.repair.factored` over a weight matrix and its gradient.

On a CPU the kernels of `seft.native` run them, and on CUDA the kernels of `seft.repair.cuda`. Each kernel visits every
entry once. For other dtypes and memory layouts, or without a kernel, torch computes the same in more passes, a few rows
at a time. All implementations round with the same random numbers and agree up to the rounding of their sums.
"""

import ctypes
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from seft.dtypes import master_dtype
from seft.native import kernels
from seft.repair.rounding import DROPPED_BITS, round_stochastically
from seft.repair.sampled import row_chunks
from seft.seeds import number

CACHED, CHUNK = 1 << 18, 1 << 24
"""Number of entries that torch changes at a time: on a CPU, so that their copies fit its cache, and on other devices.
"""
ROWS_OF_SUMS = 64
"""Number of rows over which a kernel of the CPU sums each column. These partial sums are added afterwards."""


def square_sums(
    weight: Float[Tensor, "rows cols"], gradient: Float[Tensor, "rows cols"]
) -> tuple[Float[Tensor, "rows"], Float[Tensor, "cols"]]:
    """Set the gradient to zero at the zeros of the weight. Return the sums of its squares in each row and column."""
    rows, cols = weight.shape
    if _on_cuda(weight, gradient):
        from seft.repair import cuda

        return cuda.square_sums(weight, gradient)
    if _on_cpu(weight, gradient):
        row_sums = torch.empty(rows, dtype=torch.float32)
        col_sums = torch.empty(-(-rows // ROWS_OF_SUMS), cols, dtype=torch.float32)
        _call("seft_squares", _native(weight, gradient, row_sums), weight, gradient, col_sums.data_ptr(), ROWS_OF_SUMS)
        return row_sums, col_sums.sum(0)
    dtype = master_dtype(weight.dtype)
    by_row, by_col = gradient.new_zeros(rows, dtype=dtype), gradient.new_zeros(cols, dtype=dtype)
    for part in _chunks(weight):
        masked = gradient[part].to(dtype) * weight[part].to(dtype).sign().abs_()  # on a CPU faster than a mask
        gradient[part] = masked
        squares = masked.square_()
        by_row[part] = squares.sum(1)
        by_col += squares.sum(0)
    return by_row, by_col


def scaled_square_sum(
    gradient: Float[Tensor, "rows cols"],
    weight: Float[Tensor, "rows cols"],
    row_scales: Float[Tensor, "rows"],
    col_scales: Float[Tensor, "cols"],
) -> Float[Tensor, ""]:
    """Return the sum of the squares of the gradient, each entry multiplied by the scales of its row and column.

    `weight` is the matrix to which the gradient belongs. Its values are not read.
    """
    if _on_cuda(weight, gradient):
        from seft.repair import cuda

        return cuda.scaled_square_sum(gradient, row_scales, col_scales)
    if _on_cpu(weight, gradient):
        row_sums = torch.empty(len(gradient), dtype=torch.float32)
        work = _native(weight, gradient, row_sums, row_scales, col_scales)
        _call("seft_scaled_squares", work, weight, gradient)
        return row_sums.sum()
    total = row_scales.new_zeros(())
    for part in _chunks(gradient):
        scaled = gradient[part].to(total.dtype).mul(col_scales).mul_(row_scales[part, None])
        total += scaled.square_().sum()
    return total


def change(
    weight: Float[Tensor, "rows cols"],
    gradient: Float[Tensor, "rows cols"],
    row_scales: Float[Tensor, "rows"],
    col_scales: Float[Tensor, "cols"],
    *,
    seed: int,
    name: str,
) -> None:
    """Subtract the scaled gradient from the weight in place, and round as `round_stochastically` does.

    A row whose scale is zero does not change, also if its gradient is not finite.
    """
    if _on_cuda(weight, gradient):
        from seft.repair import cuda

        cuda.change(weight, gradient, row_scales, col_scales, number(seed, name))
    elif _on_cpu(weight, gradient):
        work = _native(weight, gradient, None, row_scales, col_scales, random=number(seed, name))
        _call("seft_change", work, weight, gradient)
    else:
        for part in _chunks(weight):
            step = gradient[part].to(row_scales.dtype).mul(col_scales).mul_(row_scales[part, None])
            step = step.masked_fill_((row_scales[part] == 0)[:, None], 0.0)
            changed, first = weight[part].to(row_scales.dtype) - step, part.start * weight.shape[1]
            weight[part] = round_stochastically(changed, weight.dtype, seed, name, first)
    torch.autograd.graph.increment_version(weight)  # torch does not see what a kernel writes


def _on_cpu(weight: Tensor, gradient: Tensor) -> bool:
    known = weight.dtype in kernels.DTYPES and gradient.dtype in {weight.dtype, torch.float32}
    return weight.device.type == "cpu" and known and _contiguous(weight, gradient) and kernels.library() is not None


def _on_cuda(weight: Tensor, gradient: Tensor) -> bool:
    known = weight.dtype in {torch.float32, *DROPPED_BITS} and gradient.dtype in {weight.dtype, torch.float32}
    return weight.device.type == "cuda" and known and _contiguous(weight, gradient) and kernels.can_compile_for_cuda()


def _contiguous(weight: Tensor, gradient: Tensor) -> bool:
    return weight.is_contiguous() and gradient.is_contiguous()


def _native(
    weight: Tensor,
    gradient: Tensor,
    row_sums: Tensor | None = None,
    row_scales: Tensor | None = None,
    col_scales: Tensor | None = None,
    *,
    random: int = 0,
) -> kernels.Factored:
    optional = (None if each is None else each.data_ptr() for each in (row_sums, row_scales, col_scales))
    return kernels.Factored(weight.data_ptr(), gradient.data_ptr(), *weight.shape, *optional, random)


def _call(name: str, work: kernels.Factored, weight: Tensor, gradient: Tensor, *more: int) -> None:
    dtypes = kernels.DTYPES[weight.dtype], kernels.DTYPES[gradient.dtype]
    getattr(kernels.library(), name)(ctypes.addressof(work), *more, *dtypes, torch.get_num_threads())


def _chunks(weight: Float[Tensor, "rows cols"]) -> Iterator[slice]:
    return row_chunks(weight.shape, CACHED if weight.device.type == "cpu" else CHUNK)
