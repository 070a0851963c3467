"""Selected entries of a product on CUDA, by a Triton kernel. It takes bfloat16 or float32, and sums in float32.

As on the CPU, the columns of both matrices are copied first, so that the tokens of a column follow each other. A
program of the kernel has 64 entries. There is no product of whole matrices. With `TRITON_INTERPRET=1`, Triton
interprets the kernel on the CPU, which is slow and only for tests.
"""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

ENTRIES, TOKENS = tl.constexpr(64), tl.constexpr(64)


def sample(
    left: Float[Tensor, "tokens rows"], right: Float[Tensor, "tokens cols"], positions: Int[Tensor, "positions"]
) -> Float[Tensor, "positions"]:
    """Return the entries of `left^T right` at flat positions `row * cols + col`, in float32."""
    entries = torch.empty(len(positions), dtype=torch.float32, device=left.device)
    if len(positions):
        grid = (triton.cdiv(len(positions), ENTRIES.value),)
        columns = left.t().contiguous(), right.t().contiguous()
        with torch.cuda.device_of(left):  # Triton uses the current device
            _sample[grid](*columns, positions, entries, len(positions), left.shape[0], right.shape[1])
    return entries


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
