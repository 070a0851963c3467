"""Selected entries of a product, by the compiled kernel at every level."""

import pytest
import torch
from torch import Tensor

from seft.native import kernels
from seft.native.kernels import Level
from seft.repair.sampled import by_kernel, can_use_kernel, sampled_product
from tests.seft.runtime.test_kernels import level

__all__ = ["level"]

SHAPES = [(1, 1, 1), (0, 5, 6), (31, 8, 9), (64, 17, 40), (1000, 65, 33), (2500, 24, 100)]
"""Tokens, rows and columns. The kernel copies at most 1,024 tokens at a time, in tiles of 8."""


def make(tokens: int, rows: int, cols: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices, and sorted positions of half of the entries of their product."""
    random = torch.Generator().manual_seed(tokens)
    left, right = (torch.randn(tokens, size, generator=random).to(dtype) for size in (rows, cols))
    return left, right, torch.randperm(rows * cols, generator=random)[: -(-rows * cols // 2)].sort().values.int()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_entries_are_those_of_the_dense_product(
    level: Level, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    left, right, positions = make(*shape, dtype)
    assert can_use_kernel(left, right, positions)
    product = (left.double().T @ right.double()).flatten()[positions]
    size = (left.double().abs().T @ right.double().abs()).flatten()[positions]
    found = by_kernel(left, right, positions)
    assert found.dtype == torch.float32
    assert ((found.double() - product).abs() <= 2**-21 * size).all()
    kernels.library().seft_use_level(Level.PLAIN)
    if level is not Level.AVX512 or dtype == torch.float32:
        assert torch.equal(found, by_kernel(left, right, positions)), "the order of the sums is that of every level"


def test_neither_threads_nor_the_memory_layout_change_a_bit(level: Level) -> None:
    left, right, positions = make(700, 120, 200, torch.bfloat16)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(by_kernel(left, right, positions))
    torch.set_num_threads(before)
    found.append(by_kernel(left.T.contiguous().T, right[:, torch.arange(200)], positions))
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_value_that_is_not_finite_spoils_only_its_own_row(level: Level) -> None:
    left, right, positions = make(40, 16, 24, torch.bfloat16)
    clean = by_kernel(left, right, positions)
    left[3, 5] = torch.inf
    found, own = by_kernel(left, right, positions), positions // 24 == 5
    assert torch.equal(found[~own], clean[~own])
    assert not found[own].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_computed_by_torch(dtype: torch.dtype) -> None:
    left, right, positions = make(64, 17, 40, dtype)
    assert not can_use_kernel(left, right, positions)
    expected = (left.double().T @ right.double()).flatten()[positions]
    torch.testing.assert_close(sampled_product(left, right, positions).double(), expected, rtol=1e-4, atol=1e-3)
