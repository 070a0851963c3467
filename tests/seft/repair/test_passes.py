"""The passes of the optimizer of all nonzeros: the kernels of every level give the bits of one reference."""

import pytest
import torch
from torch import Tensor

from seft.native import kernels
from seft.native.kernels import Level
from seft.repair import passes
from tests.seft.runtime.test_kernels import level

__all__ = ["level"]

SHAPES = [(1, 1), (3, 5), (64, 16), (65, 33), (200, 500)]
"""Rows and columns. The kernels add 16 parts of a row, and 64 rows of a column. 100,000 entries use several threads."""
DTYPES = [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
"""Dtypes of the weight and of the gradient."""


def make(rows: int, cols: int, weight: torch.dtype, gradient: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight matrix with 60 % zeros, some of them -0.0, a gradient, and scales of rows and columns."""
    random = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, cols, generator=random)
    values *= torch.rand(rows, cols, generator=random) >= 0.6
    entries = torch.randn(rows, cols, generator=random).to(gradient)
    return values.to(weight), entries, torch.randn(rows, generator=random), torch.randn(cols, generator=random)


def run(tensors: tuple[Tensor, ...], seed: int = 1) -> list[Tensor]:
    """Return the results of all passes, and the gradient and the weight after them."""
    weight, gradient, row_scales, col_scales = (each.clone() for each in tensors)
    sums = passes.square_sums(weight, gradient)
    scaled = passes.scaled_square_sum(gradient, weight, row_scales, col_scales)
    passes.change(weight, gradient, row_scales, col_scales, seed=seed, name="layer")
    return [*sums, scaled, gradient, weight]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_equal_the_formulas(level: Level, shape: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    tensors = make(*shape, *dtypes)
    weight, gradient, row_scales, col_scales = (each.double() for each in tensors)
    masked = gradient * (weight != 0)
    scaled = masked * col_scales * row_scales[:, None]
    by_row, by_col, total, found, changed = run(tensors)
    torch.testing.assert_close(by_row.double(), masked.square().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(by_col.double(), masked.square().sum(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(total.double(), scaled.square().sum(), rtol=1e-6, atol=0)
    assert torch.equal(found.double(), masked)
    spacing = torch.finfo(dtypes[0]).eps * (weight - scaled).abs() + 2**-21 * (weight.abs() + scaled.abs())
    assert ((changed.double() - (weight - scaled)).abs() <= spacing).all()
    assert not changed[weight == 0].any()
    assert kernels.level() is level


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neither_the_level_nor_threads_change_a_bit(
    level: Level, shape: tuple[int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    tensors, before = make(*shape, *dtypes), torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(run(tensors))
    torch.set_num_threads(before)
    kernels.library().seft_use_level(Level.PLAIN)
    found.append(run(tensors))
    assert all(torch.equal(one, other) for each in found for one, other in zip(each, found[0], strict=True))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_torch_rounds_with_the_same_random_numbers(
    level: Level, monkeypatch: pytest.MonkeyPatch, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    tensors = make(200, 500, *dtypes)
    changed = run(tensors)[-1]
    monkeypatch.setattr(kernels, "library", lambda: None)
    for at_once in (1 << 18, 1000):
        monkeypatch.setattr(passes, "CACHED", at_once)
        assert torch.equal(run(tensors)[-1], changed), level
    assert torch.equal(run(tensors, seed=2)[-1], changed) is (dtypes[0] is torch.float32)


def test_a_transposed_weight_matrix_is_changed_in_place(level: Level) -> None:
    weight, *others = make(65, 33, torch.bfloat16, torch.bfloat16)
    transposed = weight.T.contiguous().T
    expected = run((weight, *others))[-1]
    passes.square_sums(transposed, others[0])
    passes.change(transposed, others[0], *others[1:], seed=1, name="layer")
    assert torch.equal(transposed, expected), level


@pytest.mark.parametrize("kernel", [True, False])
def test_a_row_whose_scale_is_zero_does_not_change(level: Level, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    weight, gradient, row_scales, col_scales = make(65, 33, torch.bfloat16, torch.bfloat16)
    row_scales[3], gradient[3, 5] = 0, torch.inf
    before = weight.clone()
    if not kernel:
        monkeypatch.setattr(kernels, "library", lambda: None)
    passes.change(weight, gradient, row_scales, col_scales, seed=1, name="layer")
    changed = (weight != before).any(1)
    assert not changed[3], level
    assert int(changed.sum()) > 60
