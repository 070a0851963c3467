"""Whole ranks give a number of values as closely as possible, spread evenly."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seft.config import RepairConfig, RepairMethod
from seft.errors import ConfigError
from seft.fit import SIZES, ranks

SHAPES = [(64, 64), (32, 64), (160, 64), (64, 160)] * 4


def ranks_of(
    shapes: list[tuple[int, int]], density: float, method: RepairMethod = RepairMethod.MASKED_LORA
) -> list[int]:
    named = {str(number): shape for number, shape in enumerate(shapes)}
    return list(ranks(named, RepairConfig(1, method, density)).values())


@pytest.mark.parametrize("method", SIZES)
@given(density=st.floats(0.01, 0.3))
def test_the_count_is_met_within_half_a_rank_and_no_two_ranks_differ_by_more_than_one(
    method: RepairMethod, density: float
) -> None:
    size, result = SIZES[method], ranks_of(SHAPES, density, method)
    values = sum(size(shape, rank) for shape, rank in zip(SHAPES, result, strict=True))
    least = min(result)
    largest_step = max(size(shape, least + 1) - size(shape, least) for shape in SHAPES)
    assert abs(values - density * sum(rows * cols for rows, cols in SHAPES)) <= largest_step / 2 + 1
    assert max(result) <= least + 1


def test_single_ranks_are_spread_evenly() -> None:
    values = ranks_of([(64, 64)] * 8, 4 * 128 / (8 * 64 * 64))
    assert sum(values) == 4
    assert all(sum(values[place : place + 2]) == 1 for place in range(0, 8, 2))


@pytest.mark.parametrize("method", SIZES)
@settings(deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    density=st.floats(1e-6, 1),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_the_linears_does_not_decide_whether_a_density_is_rejected(
    method: RepairMethod, shapes: list[tuple[int, int]], density: float, order: Random
) -> None:
    outcomes = set[str]()
    for _ in range(3):
        try:
            result = ranks_of(shapes, density, method)
            assert any(result)
            assert all(rank < min(shape) for shape, rank in zip(shapes, result, strict=True))
            outcomes.add("")
        except ConfigError as error:
            outcomes.add(str(error))
        order.shuffle(shapes)
    assert len(outcomes) == 1


@pytest.mark.parametrize(("density", "rule"), [(1e-6, "at least one linear layer"), (0.9, "one of 32 x 64 may get")])
def test_a_density_that_whole_ranks_cannot_give_is_rejected(density: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        ranks_of(SHAPES, density)
    assert error.value.field == "density"
