"""Rounding to narrow dtypes: to a neighbour, right on average, and by hash the same in any order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seft.repair.rounding import round_by_hash, round_stochastically

DRAWS = 4000
DTYPES = [torch.bfloat16, torch.float16]
Rounding = Callable[[Tensor, torch.dtype, int], Tensor]


def by_seed(values: Tensor, dtype: torch.dtype, draw: int) -> Tensor:
    return round_stochastically(values.clone(), dtype, 0, str(draw))


def by_hash(values: Tensor, dtype: torch.dtype, draw: int) -> Tensor:
    labels = torch.linspace(-1, 1, values.numel()).view_as(values)
    return round_by_hash(values.clone(), dtype, labels, torch.tensor([draw], dtype=torch.int16))


@pytest.mark.parametrize("rounding", [by_seed, by_hash])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_goes_to_a_neighbour_and_is_right_on_average(rounding: Rounding, dtype: torch.dtype) -> None:
    values = torch.randn(64, generator=torch.Generator().manual_seed(0))
    values[:8] = 0
    rounded = torch.stack([rounding(values, dtype, draw) for draw in range(DRAWS)])
    assert rounded.dtype is dtype
    exact, spacing = rounded.float(), values.abs() * torch.finfo(dtype).eps
    assert ((exact - values).abs() <= spacing).all()
    assert (exact[:, :8] == 0).all()
    assert ((exact.mean(0) - values).abs() <= 5 * spacing / DRAWS**0.5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_one_count_the_hashes_are_right_on_average_over_values(dtype: torch.dtype) -> None:
    values = 1 + torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    error = by_hash(values, dtype, 7).double() - values
    assert abs(float(error.mean())) <= 5 * torch.finfo(dtype).eps / len(values) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_values_with_other_labels_are_right_on_average(dtype: torch.dtype) -> None:
    values = torch.full((100_000,), 1 + 0.3 * torch.finfo(dtype).eps)
    error = by_hash(values, dtype, 7).double() - values
    assert abs(float(error.mean())) <= 5 * torch.finfo(dtype).eps / len(values) ** 0.5


@pytest.mark.parametrize("rounding", [by_seed, by_hash])
def test_values_that_the_narrow_dtype_has_are_not_rounded(rounding: Rounding) -> None:
    values = torch.randn(100).bfloat16()
    assert torch.equal(rounding(values.float(), torch.bfloat16, 3), values)


def test_the_order_of_the_values_does_not_matter_to_hashes() -> None:
    values, labels, counts = torch.randn(1000), torch.randn(1000), torch.arange(1000, dtype=torch.int16)
    order = torch.randperm(1000)
    rounded = round_by_hash(values.clone(), torch.bfloat16, labels, counts)
    again = round_by_hash(values[order], torch.bfloat16, labels[order], counts[order])
    assert torch.equal(again, rounded[order])
    assert counts.tolist() == list(range(1000))
