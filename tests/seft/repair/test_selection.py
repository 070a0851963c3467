"""The largest scores are those of `topk`, for any values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.repair.selection import STRIDE, largest


def scores(kind: str, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    random, rare = torch.randn(size, generator=generator), torch.rand(size, generator=generator) < 0.02
    sampled = torch.arange(size) % STRIDE == 0
    spoiled = torch.tensor([torch.nan, torch.inf, -torch.inf])[torch.randint(3, (size,), generator=generator)]
    return {
        "plain": random,
        "skewed": random.exp().pow(4),
        "tied": random.round(),
        "sparse": random.where(rare, -torch.inf),
        "only small ones in the sample": random.where(~sampled, -100 - random.abs()),
        "only large ones in the sample": random.where(~sampled, 100 + random.abs()),
        "not finite": random.where(~rare, spoiled),
    }[kind]


KINDS = [
    "plain",
    "skewed",
    "tied",
    "sparse",
    "only small ones in the sample",
    "only large ones in the sample",
    "not finite",
]


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.integers(0, 5000),
    fraction=st.sampled_from([0.0, 0.001, 0.02, 0.2, 0.3, 1.0, 2.0]),
    seed=st.integers(0, 2**16),
)
def test_the_largest_scores_are_those_of_topk(*, kind: str, size: int, fraction: float, seed: int) -> None:
    values, count = scores(kind, size, seed), round(fraction * size)
    found = largest(values, count)
    expected = values.topk(min(count, size))
    assert len(torch.unique(found)) == len(found)
    assert torch.equal(values[found].sort().values.nan_to_num(7e9), expected.values.sort().values.nan_to_num(7e9))
    if kind in {"plain", "skewed"}:
        assert torch.equal(found.sort().values, expected.indices.sort().values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_of_many_scores_are_those_of_topk(kind: str) -> None:
    values = scores(kind, 300_000, 0)
    found, expected = values[largest(values, 6000)], values.topk(6000).values
    assert torch.equal(found.sort().values.nan_to_num(7e9), expected.sort().values.nan_to_num(7e9))
