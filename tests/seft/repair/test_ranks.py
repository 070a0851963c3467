"""Whole ranks give a number of values as closely as possible, spread evenly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seft.config import RepairConfig, RepairMethod
from seft.errors import ConfigError
from seft.models.targets import Target
from seft.repair.masked_lora import LowRank
from seft.repair.ranks import Size, ranks
from seft.repair.spp import Scaling

SHAPES = [(64, 64), (32, 64), (160, 64), (64, 160)] * 4


def targets(shapes: list[tuple[int, int]]) -> dict[str, Target]:
    with torch.device("meta"):
        return {str(number): Target(nn.Linear(cols, rows)) for number, (rows, cols) in enumerate(shapes)}


def config(density: float) -> RepairConfig:
    return RepairConfig(1, RepairMethod.MASKED_LORA, density)


@pytest.mark.parametrize("size", [LowRank.size, Scaling.size])
@given(density=st.floats(0.01, 0.3))
def test_the_count_is_met_within_half_a_rank_and_no_two_ranks_differ_by_more_than_one(
    size: Size, density: float
) -> None:
    rank_of = ranks(targets(SHAPES), config(density), size)
    values = sum(size(shape, rank) for shape, rank in zip(SHAPES, rank_of.values(), strict=True))
    least = min(rank_of.values())
    largest_step = max(size(shape, least + 1) - size(shape, least) for shape in SHAPES)
    assert abs(values - density * sum(rows * cols for rows, cols in SHAPES)) <= largest_step / 2 + 1
    assert max(rank_of.values()) <= least + 1


def test_single_ranks_are_spread_evenly() -> None:
    shapes = [(64, 64)] * 8
    values = [*ranks(targets(shapes), config(4 * 128 / (8 * 64 * 64)), LowRank.size).values()]
    assert sum(values) == 4
    assert all(sum(values[place : place + 2]) == 1 for place in range(0, 8, 2))


@pytest.mark.parametrize(("density", "rule"), [(1e-6, "at least one linear layer"), (0.9, "must give 1, 32 x 64")])
def test_a_density_that_whole_ranks_cannot_give_is_rejected(density: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as error:
        ranks(targets(SHAPES), config(density), LowRank.size)
    assert error.value.field == "density"
