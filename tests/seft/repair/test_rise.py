"""The rise of the sparsity: the schedule, and which weights become zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seft.config import Compare, Pattern, PruneConfig, PruneSchedule
from seft.prune import curvature
from seft.prune.mask import overfull_groups
from seft.repair import rise
from seft.repair.nonzeros import NonzeroLinear, Plan
from tests.seft.repair.repairing import as_target

GRADUAL = PruneConfig(0.6, schedule=PruneSchedule.GRADUAL, rise=0.7, rise_interval=3)


def test_events_follow_the_interval_and_the_last_one_ends_the_rise() -> None:
    assert [step for step in range(1, 21) if rise.is_event(GRADUAL, 20, step)] == [3, 6, 9, 12, 14]


@pytest.mark.parametrize("steps", [90, 170, 330])
def test_a_rise_of_seven_tenths_ends_at_seven_tenths_of_the_steps(steps: int) -> None:
    assert GRADUAL.rise_end(steps) == steps * 7 // 10


def test_an_expert_without_tokens_keeps_the_order_of_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    target = as_target(torch.randn(24, 32, generator=generator))
    expert, tokens = NonzeroLinear(target, 0, "a", watch=True), 2048
    importances = []
    for step in range(1, 2001):
        expert.plan = Plan(step, None)
        if step == 1:
            expert.gradient(torch.randn(tokens, 24, generator=generator), torch.randn(tokens, 32, generator=generator))
        expert.update_curvature()
        if step in {1, 2000}:
            importances.append(expert.importance(float(tokens)))
    first, last = importances
    assert torch.equal(first.flatten().argsort(), last.flatten().argsort())
    assert last.isfinite().all()
    assert (last > 0).all()


def test_the_zeros_rise_by_the_cube_of_what_is_left() -> None:
    assert [rise.zeros_at(0, 1000, step / 10) for step in (0, 1, 5, 9, 10)] == [0, 271, 875, 999, 1000]
    assert rise.zeros_at(200, 1000, 0.5) == 900


@given(start=st.integers(0, 100), more=st.integers(0, 1000))
def test_the_zeros_rise_from_start_to_end_and_never_fall(start: int, more: int) -> None:
    counts = [rise.zeros_at(start, start + more, step / 10) for step in range(11)]
    assert (counts[0], counts[-1]) == (start, start + more)
    assert counts == sorted(counts)


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    sparsity=st.sampled_from([0.0, 0.3, 0.9]),
    pattern=st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(3, 8)]),
)
def test_groups_fill_up_to_the_pattern_and_every_count_before_is_exact(
    seed: int, sparsity: float, pattern: Pattern
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 24, generator=generator)
    weight[torch.rand(3, 24, generator=generator) < sparsity] = 0
    score = curvature.importance(weight, torch.rand(24, generator=generator), torch.rand(3, generator=generator))
    end = 72 * (pattern.of - pattern.kept) // pattern.of
    present, before = weight == 0, weight == 0
    for zeros in (*range(0, end + 1, 3), weight.numel()):
        mask = rise.choose(score, zeros, Compare.AUTO, pattern) | present
        limit = present.view(-1, pattern.of).sum(1).clamp(min=pattern.of - pattern.kept)
        assert (mask.view(-1, pattern.of).sum(1) <= limit).all()
        assert int(mask.sum()) == max(int(present.sum()), min(zeros, int(limit.sum())))
        assert not (before & ~mask).any()
        before = mask
    assert int(before.sum()) == rise.zeros_in_pattern(weight, pattern)
    assert not overfull_groups(weight.masked_fill(before, 0), pattern)


@pytest.mark.parametrize("compare", [Compare.AUTO, Compare.LAYER, Compare.ROW])
def test_the_smallest_scores_are_chosen(compare: Compare) -> None:
    score = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    mask = rise.choose(score, 24, compare)
    assert int(mask.sum()) == 24
    if compare is Compare.ROW:
        assert mask.sum(1).tolist() == [4] * 6
        assert (score.masked_fill(~mask, 0).max(1).values <= score.masked_fill(mask, 1).min(1).values).all()
    else:
        assert score[mask].max() <= score[~mask].min()
