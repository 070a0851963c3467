"""Products of bfloat16 matrices on a processor without fast instructions for them, such as one with AVX2 only.

Torch computes such products there at 1 to 16 GFLOP/s, and products of float32 matrices at 50 to 70. So this module
converts parts of the operands to float32, which is exact, adds up in float32, and rounds each sum once, as instructions
for bfloat16 do. The gradients of attention, whose products torch computes inside, are computed in float32 as a whole.
"""

import warnings
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

FEW_ROWS = 4
"""Below this number of rows, torch's own product is faster, because converting the other operand costs more."""
SIDE = 2048
"""Most rows and columns of a part that is converted at once: 16 MiB in float32. A part can have several matrices."""

ATTENTION = "_scaled_dot_product_flash_attention_for_cpu_backward"
"""Torch's gradients of attention on the CPU."""

_registered: list[torch.library.Library] = []


def use_float32_products() -> None:
    """Replace the products of this process if torch has no fast ones for bfloat16 matrices on this processor."""
    fast = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # None: torch was built without oneDNN
    if fast is None or not fast():
        replace_products()


def replace_products() -> None:
    """Replace torch's products of bfloat16 matrices on the CPU, for the whole process. This is idempotent.

    These are the products of `matmul`, `linear` and their gradients, and the gradients of
    `scaled_dot_product_attention`. Torch's variants with `out=` stay as they are: they compute all other products, and
    reject operands that do not fit. The products of stacked experts (`grouped_mm`) have their own kernel and are not
    replaced.
    """
    if _registered:
        return
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    replacements = {
        "mm": _mm,
        "addmm": _addmm,
        "addmm_": _addmm_in_place,
        "bmm": _bmm,
        "baddbmm": _baddbmm,
        "baddbmm_": _baddbmm_in_place,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, replacement in replacements.items():
            library.impl(name, replacement, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
        differentiate = partial(_differentiate_attention, torch.library.get_kernel(f"aten::{ATTENTION}", "CPU"))
        library.impl(ATTENTION, differentiate, "CPU", with_keyset=True, allow_override=True)  # type: ignore[no-untyped-call]
    _registered.append(library)


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if _replaced(2, left, right):
        return _multiply(left[None], right[None])[0]
    return torch.mm(left, right, out=left.new_empty(0))


def _addmm(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if _replaced(2, left, right, start):
        return _multiply(left[None], right[None], start, beta=beta, alpha=alpha)[0]
    return torch.addmm(start, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _addmm_in_place(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if _replaced(2, left, right, start) or start.shape != (len(left), right.shape[-1]):
        return start.copy_(_addmm(start, left, right, beta=beta, alpha=alpha))
    return torch.addmm(start, left, right, beta=beta, alpha=alpha, out=start)


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    if _replaced(3, left, right):
        return _multiply(left, right)
    return torch.bmm(left, right, out=left.new_empty(0))


def _baddbmm(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if _replaced(3, left, right, start):
        return _multiply(left, right, start, beta=beta, alpha=alpha)
    return torch.baddbmm(start, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _baddbmm_in_place(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if _replaced(3, left, right, start) or start.shape != (*left.shape[:-1], right.shape[-1]):
        return start.copy_(_baddbmm(start, left, right, beta=beta, alpha=alpha))
    return torch.baddbmm(start, left, right, beta=beta, alpha=alpha, out=start)


def _differentiate_attention(kernel: Any, keys: Any, gradient: Tensor, *operands: Any, **options: Any) -> list[Tensor]:
    """Return the gradients of query, key and value, computed by torch's kernel from float32 copies of the operands."""

    def wide(operand: Any) -> Any:
        return operand.float() if isinstance(operand, Tensor) and operand.dtype == torch.bfloat16 else operand

    results: list[Tensor]
    if gradient.dtype != torch.bfloat16:
        results = kernel.call_boxed(keys, gradient, *operands, **options)
        return results
    results = kernel.call_boxed(
        keys, *map(wide, (gradient, *operands)), **{name: wide(options[name]) for name in options}
    )
    return [result.bfloat16() for result in results]


def _replaced(dimensions: int, left: Tensor, right: Tensor, *start: Tensor) -> bool:
    """Return whether `_multiply` computes a product. Torch computes all other products, or rejects their operands."""
    return (
        all(each.dtype == torch.bfloat16 for each in (left, right, *start))
        and left.dim() == right.dim() == dimensions
        and left.shape[:-2] == right.shape[:-2]
        and left.shape[-1] == right.shape[-2]
        and left.shape[-2] >= FEW_ROWS
    )


def _multiply(
    left: BFloat16[Tensor, "batch rows inner"],
    right: BFloat16[Tensor, "batch inner cols"],
    start: BFloat16[Tensor, "..."] | None = None,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> BFloat16[Tensor, "batch rows cols"]:
    """Return beta * start + alpha * left @ right, computed one part at a time. `start` may have fewer dimensions."""
    batch, rows, inner = left.shape
    out = left.new_empty(batch, rows, right.shape[2])
    whole = None if start is None or not beta else start.expand_as(out)
    together = max(1, SIDE**2 // max(1, left[0].numel(), right[0].numel(), out[0].numel())) if batch else 1
    parts = [
        [slice(first, first + step) for first in range(0, size, step)]
        for size, step in ((batch, together), (rows, SIDE), (out.shape[2], SIDE), (inner, SIDE))
    ]
    for place in product(*parts[:3]):
        tile = out[place]
        sums = tile.new_zeros(tile.shape, dtype=torch.float32)
        if whole is not None:
            sums.add_(whole[place], alpha=beta)
        matrices, height, width = place
        for depth in parts[3]:
            operands = left[matrices, height, depth].float(), right[matrices, depth, width].float()
            torch.baddbmm(sums, *operands, alpha=alpha, out=sums)
        tile.copy_(sums)
    return out
