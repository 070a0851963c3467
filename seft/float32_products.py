"""Products of bfloat16 matrices on a processor without instructions for bfloat16.

Torch computes such products there at 2 to 16 GFLOP/s, and products of float32 matrices at 50 to 70. So this module
converts parts of the operands to float32, which is exact, adds up in float32, and rounds each sum once, as the
instructions do.
"""

import warnings
from collections.abc import Callable
from itertools import product

import torch
from jaxtyping import BFloat16
from torch import Tensor

from seft import processor

FEW_ROWS = 4
"""Below this number of rows, torch's own product is faster, because converting the other operand costs more."""
SIDE = 2048
"""Most rows and columns of a part that is converted at once: 16 MiB in float32."""

_registered: list[torch.library.Library] = []


def use_float32_products() -> None:
    """Replace the products of this process if its processor has no instructions for bfloat16."""
    if not processor.has_bfloat16():
        replace_products()


def replace_products() -> None:
    """Replace torch's products of bfloat16 matrices on the CPU, for the whole process. This is idempotent.

    Torch's variants with `out=` stay as they are. They compute the products that are not replaced.
    """
    if _registered:
        return
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    replacements: dict[str, Callable[..., Tensor]] = {
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
    _registered.append(library)


def _mm(left: Tensor, right: Tensor) -> Tensor:
    out = left.new_empty(len(left), right.shape[1])
    if not _replaced(left):
        return torch.mm(left, right, out=out)
    _write(out, left, right)
    return out


def _addmm(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_product(left.new_empty(len(left), right.shape[1]), start, left, right, beta=beta, alpha=alpha)


def _addmm_in_place(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_product(start, start, left, right, beta=beta, alpha=alpha)


def _add_product(out: Tensor, start: Tensor, left: Tensor, right: Tensor, *, beta: float, alpha: float) -> Tensor:
    if not _replaced(left):
        return torch.addmm(start, left, right, beta=beta, alpha=alpha, out=out)
    _write(out, left, right, start.expand_as(out), beta=beta, alpha=alpha)
    return out


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    out = left.new_empty(*left.shape[:2], right.shape[2])
    if not _replaced(left):
        return torch.bmm(left, right, out=out)
    for each in zip(out, left, right, strict=True):
        _write(*each)
    return out


def _baddbmm(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_products(left.new_empty(*left.shape[:2], right.shape[2]), start, left, right, beta=beta, alpha=alpha)


def _baddbmm_in_place(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _add_products(start, start, left, right, beta=beta, alpha=alpha)


def _add_products(out: Tensor, start: Tensor, left: Tensor, right: Tensor, *, beta: float, alpha: float) -> Tensor:
    if not _replaced(left):
        return torch.baddbmm(start, left, right, beta=beta, alpha=alpha, out=out)
    for part, each, lefts, rights in zip(out, start.expand_as(out), left, right, strict=True):
        _write(part, lefts, rights, each, beta=beta, alpha=alpha)
    return out


def _replaced(left: Tensor) -> bool:
    return left.dtype == torch.bfloat16 and left.shape[-2] >= FEW_ROWS


def _write(
    out: BFloat16[Tensor, "rows cols"],
    left: BFloat16[Tensor, "rows inner"],
    right: BFloat16[Tensor, "inner cols"],
    start: BFloat16[Tensor, "rows cols"] | None = None,
    *,
    beta: float = 0,
    alpha: float = 1,
) -> None:
    """Write beta * start + alpha * left @ right to `out`, a tile at a time. `start` may be `out`."""
    tiles = [[slice(first, first + SIDE) for first in range(0, size, SIDE)] for size in (*out.shape, len(right))]
    for rows, cols in product(*tiles[:2]):
        tile = out[rows, cols]
        sums = torch.zeros(tile.shape)
        if start is not None and beta:
            sums.add_(start[rows, cols], alpha=beta)
        for inner in tiles[2]:
            torch.addmm(sums, left[rows, inner].float(), right[inner, cols].float(), alpha=alpha, out=sums)
        tile.copy_(sums)
