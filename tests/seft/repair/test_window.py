"""The lists of a window: the largest gradients over micro-batches, in fixed size, and the least sensitive weights."""

import pytest
import torch
from torch import Tensor

from seft.config import Pattern
from seft.prune.mask import smallest_in_groups
from seft.repair import sampled as module
from seft.repair import window as window_module
from seft.repair.window import CANDIDATES_PER_POSITION, Window
from tests.seft.repair.repairing import as_target, sparse_linear

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
    window = Window(as_target(WEIGHT), COUNT, seed=0)
    for left, right in pairs:
        window.observe(left, right, ACTIVE)
    return window


@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
def test_with_equal_draws_the_largest_gradients_outside_the_active_set_are_listed(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(Window, "_draws", lambda _, gradient, __: torch.ones_like(gradient))
    ((left, right),) = batches(1)
    gradient = (left.T @ right).flatten()
    gradient[ACTIVE] = 0
    window = watched([(left, right)])
    expected = gradient.abs().topk(COUNT * CANDIDATES_PER_POSITION).indices.sort().values
    assert torch.equal(window.growth.indices.long(), expected)
    torch.testing.assert_close(window.growth.sums, gradient[expected])


def sensitivities(weight: Tensor, pairs: list[Pair]) -> Tensor:
    """Return Optimal Brain Damage with a curvature of two factors, in double precision, up to a common factor."""
    outputs, inputs = (torch.cat([pair[side] for pair in pairs]).double().square().sum(0) for side in (0, 1))
    return (weight.double() ** 2 * torch.outer(outputs, inputs)).flatten()


@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
def test_removal_takes_the_least_sensitive_nonzeros_of_all_micro_batches(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    pairs = batches(3)
    expected = sensitivities(WEIGHT, pairs).masked_fill(WEIGHT.flatten() == 0, torch.inf).argsort()
    assert torch.equal(watched(pairs).removal(ACTIVE), expected[: COUNT * CANDIDATES_PER_POSITION])


def test_listed_positions_sum_the_micro_batches_since_they_were_listed() -> None:
    pairs = batches(3)
    window = watched(pairs)
    gradients = torch.stack([(left.T @ right).flatten() for left, right in pairs])[:, window.growth.indices]
    suffixes = [(gradients[first:].sum(0), (gradients[first:] ** 2).sum(0)) for first in range(3)]
    sums, squares = window.growth.sums, window.growth.squares
    assert torch.stack([torch.isclose(sums, s) & torch.isclose(squares, q) for s, q in suffixes]).any(0).all()


def test_candidates_come_from_several_micro_batches() -> None:
    quiet, loud = batches(2)
    window = watched([(quiet[0] * 1e-3, quiet[1]), loud])
    alone = watched([loud])
    assert torch.equal(window.growth.indices, alone.growth.indices)


def test_the_list_has_a_fixed_size_and_is_sorted_and_unique() -> None:
    for number in (1, 2, 5):
        growth = watched(batches(number)).growth
        assert len(growth) == COUNT * CANDIDATES_PER_POSITION
        assert growth.indices.diff().gt(0).all()
        assert not torch.isin(growth.indices, ACTIVE).any()


def test_in_a_pattern_the_groups_of_listed_zeros_may_lose_positions() -> None:
    pattern = Pattern(2, 4)
    weight = WEIGHT.masked_fill(smallest_in_groups(WEIGHT.abs(), pattern), 0.0)
    active = torch.cat([weight.flatten().nonzero()[::9, 0], (weight == 0).flatten().nonzero()[::50, 0]]).sort().values
    window, pairs = Window(as_target(weight), 2, 0, pattern), batches(4)
    for left, right in pairs:
        window.observe(left, right, active.int())
    grow_here = {int(index) // 4 for index in window.growth.indices if weight.flatten()[index] == 0}
    assert grow_here
    used = {*weight.flatten().nonzero()[:, 0].tolist(), *active.tolist()}
    removal = window.removal(active.int())
    assert set(removal.tolist()) == {index for index in used if index // 4 in grow_here}
    assert sensitivities(weight, pairs)[removal].diff().ge(0).all()


@pytest.mark.parametrize("chunk", [5 * 50, 1 << 20])
def test_chances_to_grow_are_in_proportion_to_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    left, right = torch.ones(1, 10), torch.linspace(1, 2, 50)[None]
    weight, none = torch.ones(10, 50), torch.zeros(0, dtype=torch.int32)
    grown = torch.zeros(500)
    for seed in range(1500):
        window = Window(as_target(weight), 1, seed=seed)
        window.observe(left, right, none)
        grown[window.growth.indices[window.growth.scores.argmax()]] += 1
    by_column = grown.view(10, 50).sum(0)
    assert by_column[25:].sum() / by_column[:25].sum() == pytest.approx(
        float(right[0, 25:].sum() / right[0, :25].sum()), rel=0.15
    )
    by_row = grown.view(10, 50).sum(1)
    assert by_row.min() > 100
    assert by_row.max() < 200


def test_a_seed_gives_a_position_the_same_draw_in_every_micro_batch() -> None:
    pairs = batches(3)
    one, other = (Window(as_target(WEIGHT), COUNT, seed=3) for _ in range(2))
    for left, right in pairs:
        one.observe(left, right, ACTIVE)
    other.observe(*pairs[0], ACTIVE)
    listed = dict(zip(other.growth.indices.tolist(), other.growth.draws.tolist(), strict=True))
    both = [index for index in one.growth.indices.tolist() if index in listed]
    assert both
    assert {index: listed[index] for index in both}.items() <= dict(
        zip(one.growth.indices.tolist(), one.growth.draws.tolist(), strict=True)
    ).items()


def test_the_sample_is_drawn_evenly_from_the_nonzeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "SAMPLE_SIZE", 8)
    drawn = torch.zeros(ROWS * COLS)
    for seed in range(2000):
        sample = Window(as_target(WEIGHT), COUNT, seed).sample
        assert 0 < len(sample) <= 8
        assert sample.indices.diff().gt(0).all()
        drawn[sample.indices] += 1
    nonzeros = WEIGHT.flatten() != 0
    expected = float(drawn.sum()) / int(nonzeros.sum())
    assert not drawn[~nonzeros].any()
    assert 0.6 * expected < drawn[nonzeros].min()
    assert drawn[nonzeros].max() < 1.5 * expected


def test_the_sample_sums_all_micro_batches_and_clipping_scales_the_sums() -> None:
    pairs = batches(3)
    gradients = torch.stack([(left.T @ right).flatten() for left, right in pairs])
    window = watched(pairs)
    window.scales += [0.5, 0.1, 0.3]
    here = window.sample.indices
    torch.testing.assert_close(window.sample.sums, gradients.sum(0)[here])
    torch.testing.assert_close(window.sample.squares, (gradients**2).sum(0)[here])
    growth, sample = window.clipped(ACTIVE)
    torch.testing.assert_close(sample.sums, 0.3 * gradients.sum(0)[here])
    torch.testing.assert_close(sample.squares, 0.09 * (gradients**2).sum(0)[here])
    assert torch.equal(growth.scores.argsort(), window.growth.scores.argsort())


def test_a_position_without_gradient_is_no_candidate_for_growth() -> None:
    left, right = torch.zeros(3, ROWS), torch.ones(3, COLS)
    left[:, 0] = 1
    assert set((watched([(left, right)]).growth.indices // COLS).tolist()) == {0}
