"""What a window lists: the largest gradients, the least sensitivities, summed over micro-batches, in fixed size."""

import operator

import pytest
import torch
from torch import Tensor

from seft.config import Pattern
from seft.prune.mask import in_groups
from seft.repair import sampled as module
from seft.repair.window import LISTED, Window
from tests.seft.repairing import sparse_linear

ROWS, COLS, COUNT = 24, 16, 6
WEIGHT = sparse_linear(ROWS, COLS, 0.6).weight.detach()
ACTIVE = torch.arange(0, ROWS * COLS, 31, dtype=torch.int32)

Pair = tuple[Tensor, Tensor]


def batches(number: int, tokens: int = 7) -> list[Pair]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(tokens, ROWS, generator=generator), torch.randn(tokens, COLS, generator=generator))
        for _ in range(number)
    ]


def watched(pairs: list[Pair]) -> Window:
    window = Window(WEIGHT, COUNT)
    for left, right in pairs:
        window.observe(left, right, WEIGHT, ACTIVE)
    return window


@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
def test_growth_lists_the_largest_gradients_outside_the_active_set(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    ((left, right),) = batches(1)
    gradient = (left.T @ right).flatten()
    gradient[ACTIVE] = 0
    window = watched([(left, right)])
    expected = gradient.abs().topk(COUNT * LISTED).indices.sort().values
    assert torch.equal(window.growth.indices.long(), expected)
    torch.testing.assert_close(window.growth.sums, gradient[expected])


@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
def test_removal_lists_the_least_sensitive_nonzeros(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    ((left, right),) = batches(1)
    sensitivity = (WEIGHT * (left.T @ right)).flatten().abs()
    sensitivity[WEIGHT.flatten() == 0] = torch.inf
    expected = sensitivity.topk(COUNT * LISTED, largest=False).indices.sort().values
    assert torch.equal(watched([(left, right)]).removal.indices.long(), expected)


def test_listed_positions_sum_all_micro_batches_that_they_were_listed_in() -> None:
    pairs = batches(3)
    window = watched(pairs)
    gradients = torch.stack([(left.T @ right).flatten() for left, right in pairs])
    removal = window.removal.indices
    torch.testing.assert_close(window.removal.sums, gradients.sum(0)[removal])
    torch.testing.assert_close(window.removal.squares, (gradients**2).sum(0)[removal])
    partial = torch.stack([gradients[first:].sum(0) for first in range(3)])[:, window.growth.indices]
    assert torch.isclose(window.growth.sums, partial).any(0).all()


def test_candidates_come_from_several_micro_batches() -> None:
    quiet, loud = batches(2)
    window = watched([(quiet[0] * 1e-3, quiet[1]), loud])
    alone = watched([loud])
    assert torch.equal(window.growth.indices, alone.growth.indices)


def test_lists_have_a_fixed_size_and_are_sorted_and_unique() -> None:
    for number in (1, 2, 5):
        window = watched(batches(number))
        for candidates in (window.growth, window.removal):
            assert len(candidates) == COUNT * LISTED
            assert candidates.indices.diff().gt(0).all()
        assert not torch.isin(window.growth.indices, ACTIVE).any()


def test_in_a_pattern_the_rivals_of_listed_zeros_have_sums_over_the_same_micro_batches() -> None:
    pattern = Pattern(2, 4)
    weight = WEIGHT.masked_fill(in_groups(WEIGHT.abs(), pattern), 0.0)
    active = torch.cat([weight.flatten().nonzero()[::9, 0], (weight == 0).flatten().nonzero()[::50, 0]]).sort().values
    window = Window(weight, 2, pattern)
    gradients = []
    for left, right in batches(4):
        window.observe(left, right, weight, active.int())
        gradients.append((left.T @ right).flatten())
    growth = window.growth
    grow_here = {int(index) // 4 for index in growth.indices if weight.flatten()[index] == 0}
    used = {*weight.flatten().nonzero()[:, 0].tolist(), *active.tolist()}
    assert set(window.removal.indices.tolist()) == {index for index in used if index // 4 in grow_here}
    suffixes = torch.stack([torch.stack(gradients[first:]).sum(0) for first in range(4)])
    for group in grow_here:
        members = window.removal[window.removal.indices // 4 == group]
        rival_sums = [torch.allclose(members.sums, suffix[members.indices.long()], atol=1e-5) for suffix in suffixes]
        zeros = growth[growth.indices // 4 == group]
        zero_sums = [bool(torch.isclose(zeros.sums, s[zeros.indices.long()], atol=1e-5).any()) for s in suffixes]
        assert any(map(operator.and_, rival_sums, zero_sums))


@pytest.mark.parametrize("chunk", [5 * COLS, 1 << 20])
def test_chances_to_grow_are_in_proportion_to_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    left, right = torch.ones(1, 10), torch.linspace(1, 2, 50)[None]
    weight, none = torch.ones(10, 50), torch.zeros(0, dtype=torch.int32)
    grown = torch.zeros(500)
    for seed in range(3000):
        window = Window(weight, 1, seed=seed)
        window.observe(left, right, weight, none)
        grown[window.growth.indices[window.growth.scores.argmax()]] += 1
    by_column = grown.view(10, 50).sum(0)
    assert by_column[25:].sum() / by_column[:25].sum() == pytest.approx(
        float(right[0, 25:].sum() / right[0, :25].sum()), rel=0.1
    )
    by_row = grown.view(10, 50).sum(1)
    assert by_row.min() > 220
    assert by_row.max() < 380


def test_a_seed_gives_a_position_the_same_draw_in_every_micro_batch() -> None:
    pairs = batches(3)
    one, other = (Window(WEIGHT, COUNT, seed=3) for _ in range(2))
    for left, right in pairs:
        one.observe(left, right, WEIGHT, ACTIVE)
    other.observe(*pairs[0], WEIGHT, ACTIVE)
    listed = dict(zip(other.growth.indices.tolist(), other.growth.draws.tolist(), strict=True))
    both = [index for index in one.growth.indices.tolist() if index in listed]
    assert both
    assert {index: listed[index] for index in both}.items() <= dict(
        zip(one.growth.indices.tolist(), one.growth.draws.tolist(), strict=True)
    ).items()


def test_a_position_without_gradient_is_no_candidate_for_growth() -> None:
    left, right = torch.zeros(3, ROWS), torch.ones(3, COLS)
    left[:, 0] = 1
    assert set((watched([(left, right)]).growth.indices // COLS).tolist()) == {0}
