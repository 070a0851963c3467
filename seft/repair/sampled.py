"""Computes selected entries of the product of two dense matrices, without the full product (SDDMM).

On a CPU a kernel of `seft.native` computes them, and on CUDA one of `seft.repair.cuda`. Without it,
`torch.sparse.sampled_addmm` does, with the positions as a CSR pattern. If many entries are needed, the dense product is
computed for a few rows at a time. All ways sum in float32 or wider. The dense product of bfloat16 matrices rounds each
sum to bfloat16, as the gradient of a whole weight matrix does. The other ways agree up to the order of the sums.
"""

import warnings
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.dtypes import master_dtype
from seft.native import kernels

TOKENS_AT_ONCE = 256
"""Number of tokens per call of `sampled_addmm`, which copies its operands. Copies of this size stay in a processor's
cache."""

CHUNK = 1 << 20
"""Number of entries of a dense product in memory at a time (at least one row)."""

DENSE_FROM, DENSE_FROM_WITH_KERNEL = 0.3, 0.1
"""Fraction of selected entries above which the dense product is faster than `by_pattern`, and than the kernel.

Measured on x86-64 processors (docs/log.md). With AMX, the dense product of bfloat16 matrices is as fast as the kernel
from a fraction of 0.05 on.
"""


def sampled_product(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """Return the entries of `left^T right` at sorted flat positions `row * cols + col`."""
    has_kernel = can_use_kernel(left, right, indices)
    if len(indices) > (DENSE_FROM_WITH_KERNEL if has_kernel else DENSE_FROM) * left.shape[1] * right.shape[1]:
        return by_rows(left, right, indices)
    if has_kernel:
        return by_kernel(left, right, indices)
    dtype = master_dtype(left.dtype)
    return by_pattern(left.to(dtype), right.to(dtype), indices)


def row_chunks(shape: Sequence[int], most: int | None = None) -> Iterator[slice]:
    """Yield slices that together cover the rows of a matrix, each with at most `most` entries, or with one row.

    The default of `most` is `CHUNK`.
    """
    rows, cols = shape
    height = max(1, (most or CHUNK) // max(1, cols))
    return (slice(start, min(rows, start + height)) for start in range(0, rows, height))


def can_use_kernel(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> bool:
    """Return whether a kernel can compute the entries: of bfloat16 or float32 matrices on the CPU or on CUDA."""
    if left.dtype not in kernels.DTYPES or left.dtype != right.dtype or indices.dtype != torch.int32:
        return False
    match left.device.type:
        case "cpu":
            return kernels.library() is not None
        case "cuda":
            return kernels.can_compile_for_cuda()
        case _:
            return False


def by_kernel(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """Return the selected entries, computed by a compiled kernel. `can_use_kernel` must be true.

    It copies the columns of both matrices, so that the tokens of a column follow each other in memory.
    """
    if left.device.type == "cuda":
        from seft.repair import cuda

        return cuda.sample(left, right, indices)
    if len(left) != len(right):
        raise ValueError(f"both matrices must have the same tokens; they have {len(left)} and {len(right)}")
    left, right, indices = left.contiguous(), right.contiguous(), indices.contiguous()
    entries = torch.empty(len(indices), dtype=torch.float32)
    sizes = (len(left), left.shape[1], right.shape[1])
    places = (indices.data_ptr(), len(indices), entries.data_ptr())
    dtype, threads = kernels.DTYPES[left.dtype], torch.get_num_threads()
    if kernels.library().seft_sample(left.data_ptr(), right.data_ptr(), *sizes, *places, dtype, threads):
        raise MemoryError(f"no memory for a copy of the factors of a product of {len(left)} tokens")
    return entries


def by_pattern(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """Return the selected entries, computed by `torch.sparse.sampled_addmm`."""
    rows, cols = left.shape[1], right.shape[1]
    starts = torch.arange(rows + 1, device=indices.device) * cols
    ends, zeros = torch.searchsorted(indices, starts, out_int32=True), left.new_zeros(len(indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        pattern = torch.sparse_csr_tensor(ends, indices % cols, zeros, (rows, cols), check_invariants=False)
    for left_part, right_part in zip(
        torch.split(left, TOKENS_AT_ONCE), torch.split(right, TOKENS_AT_ONCE), strict=True
    ):
        torch.sparse.sampled_addmm(pattern, left_part.t(), right_part, out=pattern)
    return pattern.values()


def by_rows(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """Return the selected entries, read from the dense product, which is computed for a few rows at a time."""
    rows, cols = left.shape[1], right.shape[1]
    pieces = [left.new_zeros(0, dtype=master_dtype(left.dtype))]
    for chunk in row_chunks((rows, cols)):
        bounds = torch.tensor([chunk.start * cols, chunk.stop * cols], dtype=indices.dtype, device=indices.device)
        first, last = torch.searchsorted(indices, bounds).tolist()
        pieces.append(product_rows(left, right, chunk).flatten()[indices[first:last] - chunk.start * cols])
    return torch.cat(pieces)


def product_rows(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], rows: slice
) -> Float[Tensor, "chunk cols"]:
    """Return these rows of `left^T right` in float32 or wider. The entries of bfloat16 matrices have its precision.

    The product of bfloat16 matrices is several times faster than that of their float32 copies.
    """
    dtype = master_dtype(left.dtype)
    if left.dtype != torch.bfloat16:
        left, right = left.to(dtype), right.to(dtype)
    return (left[:, rows].t() @ right).to(dtype)
