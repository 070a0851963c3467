"""Some entries of a product of two dense matrices, without the product (SDDMM).

`torch.sparse.sampled_addmm` does it where the device has it, with the positions as a CSR pattern; elsewhere the two
vectors of each entry are gathered, a bounded number at a time. Both sum in float32 or wider and agree to rounding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seft.repair.positions import master_dtype

TOKENS_AT_ONCE = 256
"""The kernel copies its operands to lie token by token; copies of so many tokens stay in a processor's cache."""

GATHERED_AT_ONCE = 1 << 22


def sampled_product(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], indices: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """`left^T right` at sorted flat positions of its (rows, cols)."""
    dtype = master_dtype(left.dtype)
    compute = by_pattern if left.device.type in {"cpu", "cuda"} else by_gathering
    return compute(left.to(dtype), right.to(dtype), indices)


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
