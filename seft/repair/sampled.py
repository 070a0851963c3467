"""Some entries of a product of two dense matrices, without the product (SDDMM).

`torch.sparse.sampled_addmm` does it where the device has it, with the positions as a CSR pattern; elsewhere the two
vectors of each entry are gathered, a bounded number at a time. Where most entries are wanted, the product is made whole
for a few rows at a time instead. All sum in float32 or wider and agree to rounding.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.dtypes import master_dtype

TOKENS_AT_ONCE = 256
"""The kernel copies its operands to lie token by token; copies of so many tokens stay in a processor's cache."""

GATHERED_AT_ONCE = 1 << 22

CHUNK = 1 << 20
"""Entries of a dense product that exist at once (at least one row)."""

MOST = 0.3
"""The share of entries from which the dense product is faster, on two cores of an x86-64 processor."""


def sampled_product(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """`left^T right` at sorted flat positions of its (rows, cols)."""
    dtype = master_dtype(left.dtype)
    compute = by_pattern if left.device.type in {"cpu", "cuda"} else by_gathering
    if len(indices) > MOST * left.shape[1] * right.shape[1]:
        compute = by_rows
    return compute(left.to(dtype), right.to(dtype), indices)


def row_chunks(shape: Sequence[int]) -> Iterator[slice]:
    """The rows of a matrix, a bounded number of entries at a time."""
    rows, cols = shape
    height = max(1, CHUNK // cols)
    return (slice(start, min(rows, start + height)) for start in range(0, rows, height))


def by_pattern(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """The entries by `sampled_addmm`."""
    rows, cols = left.shape[1], right.shape[1]
    starts = torch.arange(rows + 1, device=indices.device) * cols
    pattern = torch.sparse_csr_tensor(
        torch.searchsorted(indices, starts, out_int32=True),
        indices % cols,
        left.new_zeros(len(indices)),
        (rows, cols),
        check_invariants=False,
    )
    for some, others in zip(torch.split(left, TOKENS_AT_ONCE), torch.split(right, TOKENS_AT_ONCE), strict=True):
        torch.sparse.sampled_addmm(pattern, some.t(), others, out=pattern)
    return pattern.values()


def by_gathering(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """The entries from their two columns, chunk by chunk."""
    chunk = max(1, GATHERED_AT_ONCE // max(1, len(left)))
    pieces = [
        (left[:, piece // right.shape[1]] * right[:, piece % right.shape[1]]).sum(0)
        for piece in torch.split(indices, chunk)
    ]
    return torch.cat(pieces)


def by_rows(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """The entries out of the dense product, which exists for a chunk of rows at a time."""
    rows, cols = left.shape[1], right.shape[1]
    pieces = [left.new_zeros(0)]
    for chunk in row_chunks((rows, cols)):
        bounds = torch.tensor([chunk.start * cols, chunk.stop * cols], dtype=indices.dtype, device=indices.device)
        first, last = torch.searchsorted(indices, bounds).tolist()
        pieces.append((left[:, chunk].t() @ right).flatten()[indices[first:last] - chunk.start * cols])
    return torch.cat(pieces)
