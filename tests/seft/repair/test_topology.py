"""The decisions of one event: which positions drop, grow and become zero, with and without a pattern."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.config import Pattern
from seft.repair.active import Active
from seft.repair.topology import choose, drop
from seft.repair.window import Candidates


def candidates(*pairs: tuple[int, float]) -> Candidates:
    indices, sums = zip(*pairs, strict=True)
    return Candidates.from_micro_batch(torch.tensor(indices), torch.tensor(sums), torch.ones(len(sums)))


def removal(*indices: int) -> Tensor:
    return torch.tensor(indices)


def active_at(weight: Tensor, *indices: int) -> Active:
    return Active.start(weight, torch.tensor(indices, dtype=torch.int32))


def test_drop_takes_the_positions_that_moved_least_and_restore_gives_the_exact_bases() -> None:
    weight = torch.randn(4, 5)
    before = weight.clone()
    active = active_at(weight, 1, 4, 9, 13)
    active.values.add_(torch.tensor([0.3, -0.1, 0.2, -0.4]))
    active.write(weight)
    kept, dropped = drop(active, 2)
    assert dropped.indices.tolist() == [4, 9]
    dropped.restore(weight)
    kept.restore(weight)
    assert torch.equal(weight, before)


def test_adapt_removes_the_least_sensitive_that_did_not_grow() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 5.0, 0.0]])
    kept, dropped = active_at(weight, 6), active_at(weight, 3)
    growth = candidates((2, 9.0), (0, 0.1))
    for least_first, least in ((removal(0, 1, 5, 6), 0), (removal(1, 0, 5, 6), 1), (removal(5, 1, 6), 5)):
        choice = choose(weight, kept, dropped, growth, least_first, budget=5)
        assert choice.grown.indices.tolist() == [2]
        assert choice.removed.tolist() == [least]


def test_a_removed_active_position_is_replaced_by_the_next_best_candidate() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 5.0, 0.0]])
    kept, dropped = active_at(weight, 6), active_at(weight, 3)
    growth = candidates((2, 9.0), (4, 8.0), (7, 7.0))
    choice = choose(weight, kept, dropped, growth, removal(6, 5), budget=5)
    assert choice.removed.tolist() == [6, 5]
    assert choice.grown.indices.tolist() == [2, 4]


def test_an_active_position_stays_if_no_candidate_can_replace_it() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 5.0, 0.0]])
    kept, dropped = active_at(weight, 6), active_at(weight, 3)
    choice = choose(weight, kept, dropped, candidates((2, 9.0)), removal(6, 5), budget=5)
    assert choice.removed.tolist() == [5]


PAIR = Pattern(2, 4)
GROUPS = torch.tensor([[1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0]])


def test_a_grown_zero_replaces_the_least_sensitive_of_its_own_group() -> None:
    kept, dropped = active_at(GROUPS, 1), active_at(GROUPS, 5)
    choice = choose(GROUPS, kept, dropped, candidates((2, 9.0)), removal(5, 4, 0, 1), budget=4, pattern=PAIR)
    assert choice.grown.indices.tolist() == [2]
    assert choice.removed.tolist() == [0]


def test_an_active_position_may_be_replaced_and_the_next_best_candidate_grows_too() -> None:
    kept, dropped = active_at(GROUPS, 1), active_at(GROUPS, 5)
    growth = candidates((2, 9.0), (6, 8.0))
    choice = choose(GROUPS, kept, dropped, growth, removal(1, 5, 0, 4), budget=4, pattern=PAIR)
    assert choice.grown.indices.tolist() == [2, 6]
    assert choice.removed.tolist() == [1, 5]


def test_a_group_grows_at_most_its_limit_and_other_groups_grow_the_rest() -> None:
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0]])
    kept, dropped = active_at(weight), active_at(weight, 0, 4)
    growth = candidates((1, 9.0), (2, 8.0), (3, 7.0), (6, 6.0))
    choice = choose(weight, kept, dropped, growth, removal(0, 4), budget=2, pattern=Pattern(1, 4))
    assert choice.grown.indices.tolist() == [1, 6]
    assert sorted(choice.removed.tolist()) == [0, 4]


def test_a_grown_zero_replaces_nothing_if_its_group_has_a_free_place() -> None:
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0]])
    kept, dropped = active_at(weight), active_at(weight, 5)
    choice = choose(weight, kept, dropped, candidates((2, 9.0)), removal(0), budget=4, pattern=PAIR)
    assert choice.removed.tolist() == []
    choice = choose(weight, kept, dropped, candidates((2, 9.0)), removal(0), budget=3, pattern=PAIR)
    assert choice.removed.tolist() == [0]


def test_the_positions_that_moved_most_stay_if_no_group_has_a_place_for_others() -> None:
    weight = GROUPS.clone()
    kept, dropped = active_at(weight, 4, 5), active_at(weight, 0, 1)
    dropped.values.copy_(torch.tensor([1.5, 2.1]))
    choice = choose(weight, kept, dropped, candidates((6, 9.0)), removal(4, 5), budget=4, pattern=PAIR)
    assert choice.spared.tolist() == [0, 1]
    assert len(choice.grown) == len(choice.removed) == 0


@settings(max_examples=200, deadline=None)
@given(
    pattern=st.sampled_from([PAIR, Pattern(1, 4), Pattern(4, 8)]),
    fraction=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_in_every_group_the_least_sensitive_are_removed_and_the_best_of_all_grow(
    *, pattern: Pattern, fraction: float, seed: int
) -> None:
    """With all positions listed and all groups full, an event's choice can be read off the sets."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 3 * pattern.of, generator=generator)
    weight.view(-1, pattern.of)[:, pattern.kept :] = 0.0
    sums = torch.randn(weight.numel(), generator=generator)
    active = Active.start(weight, weight.flatten().nonzero().squeeze(1)[::5].int())
    active.values.add_(torch.randn(len(active), generator=generator))
    kept, dropped = drop(active, round(fraction * len(active)))
    kept.write(weight)
    everything = Candidates.from_micro_batch(torch.arange(len(sums)), sums, torch.ones(len(sums)))
    sensitivity = (weight.flatten() * sums).abs()
    order = sensitivity.argsort()
    used = order[(weight.flatten() != 0)[order] | torch.isin(order, kept.indices)]
    outside = everything[~torch.isin(everything.indices, active.indices)]
    choice = choose(
        weight,
        kept,
        dropped,
        outside,
        used,
        budget=int(weight.count_nonzero()),
        pattern=pattern,
    )

    grown, removed = set(choice.grown.indices.tolist()), set(choice.removed.tolist())
    left = [index for index in removed if index in kept.indices.tolist()]
    assert len(grown) == len(dropped) + len(left)
    ranked = sorted(outside.indices.tolist(), key=lambda index: -abs(float(sums[index])))
    groups = [index // pattern.of for index in ranked]
    fit = [index for place, index in enumerate(ranked) if groups[:place].count(groups[place]) < pattern.kept]
    assert grown == set(fit[: len(grown)])
    for start in range(0, len(sums), pattern.of):
        members = range(start, start + pattern.of)
        rivals = [index for index in members if weight.flatten()[index] != 0 and index not in grown]
        zeros = [index for index in members if weight.flatten()[index] == 0 and index in grown]
        assert removed & set(members) == set(sorted(rivals, key=sensitivity.tolist().__getitem__)[: len(zeros)])
