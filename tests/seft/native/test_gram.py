"""Gram matrices of bfloat16 inputs, by the compiled kernel."""

import pytest
import torch
from torch import Tensor

from seft.native import kernels
from seft.native.kernels import Level
from seft.prune.statistics import add_products
from tests.seft.runtime.test_kernels import LEVELS, level

__all__ = ["level"]

SHAPES = [(1, 1), (0, 5), (2, 47), (31, 48), (512, 49), (1000, 100), (2500, 200)]
"""Tokens and columns. The kernel has panels of 48 columns, and copies at most 1,024 tokens at a time."""


@pytest.fixture(autouse=True)
def _only_the_kernel(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the level that has the kernel, torch must not compute the products."""
    if level is Level.AVX512:
        monkeypatch.setattr(torch, "addmm", None)


def make(tokens: int, cols: int) -> tuple[Tensor, Tensor]:
    """Inputs, and a symmetric matrix."""
    random = torch.Generator().manual_seed(tokens)
    matrix = torch.randn(cols, cols, generator=random)
    return torch.randn(tokens, cols, generator=random).bfloat16(), matrix + matrix.T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_product_of_the_inputs_with_themselves(level: Level, shape: tuple[int, int]) -> None:
    inputs, matrix = make(*shape)
    exact = inputs.double()
    size = 0.75 * matrix.double().abs() + 0.5 * exact.abs().T @ exact.abs()
    bound = size * (2**-20 if level is Level.AVX512 else 2**-19)  # products of torch differ between processors
    found = add_products(matrix, inputs, 0.75, 0.5)
    assert found.dtype == torch.float32
    assert ((found - (0.75 * matrix.double() + 0.5 * exact.T @ exact)).abs() <= bound).all()
    first = add_products(None, inputs, 0.75, 0.5)
    assert ((first - 0.5 * exact.T @ exact).abs() <= bound).all()
    if level is Level.AVX512:
        assert torch.equal(found, found.T)


@pytest.mark.parametrize("level", {Level.AVX512} & set(LEVELS), indirect=True)
def test_neither_threads_nor_the_memory_layout_change_a_bit() -> None:
    """Torch promises it for no product, so only the kernel is tested."""
    inputs, matrix = make(700, 400)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(add_products(matrix, inputs, 1.0, 1.0))
        found.append(add_products(matrix, inputs.T.contiguous().T, 1.0, 1.0))
    torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_the_sums_are_float32_whatever_the_default_dtype_is(level: Level) -> None:
    inputs, _ = make(64, 60)
    expected = add_products(None, inputs, 1.0, 1.0)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            assert torch.equal(add_products(None, inputs, 1.0, 1.0), expected)
    finally:
        torch.set_default_dtype(before)
    assert kernels.level() is level


def test_the_inputs_and_the_matrix_are_not_changed(level: Level) -> None:
    inputs, matrix = make(64, 60)
    copies = inputs.clone(), matrix.clone()
    add_products(matrix, inputs, 0.5, 1.0)
    assert torch.equal(inputs, copies[0])
    assert torch.equal(matrix, copies[1])
    assert kernels.level() is level


def test_a_value_that_is_not_finite_reaches_only_its_own_row_and_column(level: Level) -> None:
    inputs, matrix = make(40, 60)
    clean = add_products(matrix, inputs, 1.0, 1.0)
    inputs[3, 5] = torch.inf
    found = add_products(matrix, inputs, 1.0, 1.0)
    others = torch.arange(60) != 5
    torch.testing.assert_close(found[others][:, others], clean[others][:, others])
    assert not found[5].isfinite().any()
    assert not found[:, 5].isfinite().any()
    assert kernels.level() is level
