"""Drop, grow and adapt keep the laws of the method, through any sequence of events."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.repair import optimizer
from seft.repair.active import Active
from seft.repair.evolve import choose, drop
from seft.repair.linear import RepairedLinear
from seft.repair.window import Candidates
from tests.seft.repairing import look, sparse_linear


def candidates(*pairs: tuple[int, float]) -> Candidates:
    indices, sums = zip(*pairs, strict=True)
    return Candidates.newcomers(torch.tensor(indices), torch.tensor(sums))


def active_at(weight: Tensor, *indices: int) -> Active:
    return Active.start(weight, torch.tensor(indices, dtype=torch.int32))


def used(owner: RepairedLinear) -> int:
    outside = owner.weight.flatten().index_fill(0, owner.active.indices.long(), 0)
    return int(outside.count_nonzero()) + len(owner.active)


def train(owner: RepairedLinear, generator: torch.Generator) -> None:
    gradient = torch.randn(len(owner.active), generator=generator)
    optimizer.step(owner.active, gradient, rate=0.1, weight_decay=0.0)
    owner.active.write(owner.weight)


def test_drop_takes_what_moved_least_and_restoring_gives_the_base_bits() -> None:
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
    removal = candidates((0, 0.1), (1, 0.3), (5, 0.2), (6, 1.0))
    choice = choose(weight, kept, dropped, growth, removal, budget=5)
    assert choice.grown.indices.tolist() == [2]
    assert choice.removed.tolist() == [1]


def test_a_removed_active_position_is_replaced_by_the_next_best_candidate() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 5.0, 0.0]])
    kept, dropped = active_at(weight, 6), active_at(weight, 3)
    growth = candidates((2, 9.0), (4, 8.0), (7, 7.0))
    removal = candidates((6, 0.01), (5, 0.2))
    choice = choose(weight, kept, dropped, growth, removal, budget=5)
    assert choice.removed.tolist() == [6, 5]
    assert choice.grown.indices.tolist() == [2, 4]


def test_an_active_position_stays_when_nothing_can_replace_it() -> None:
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 4.0, 5.0, 0.0]])
    kept, dropped = active_at(weight, 6), active_at(weight, 3)
    choice = choose(weight, kept, dropped, candidates((2, 9.0)), candidates((6, 0.01), (5, 0.2)), budget=5)
    assert choice.removed.tolist() == [5]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sparsity=st.sampled_from([0.0, 0.3, 0.6, 0.95]),
    density=st.sampled_from([0.02, 0.2, 1.0]),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_laws_hold_through_any_sequence_of_events(
    *,
    shape: tuple[int, int],
    sparsity: float,
    density: float,
    counts: list[int],
    dtype: torch.dtype,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = sparse_linear(*shape, sparsity, seed, dtype=dtype).weight.detach()
    weight = start.mT.contiguous().mT if transposed else start.clone()
    owner = RepairedLinear(weight, density, generator)
    size = len(owner.active)
    for count in counts:
        train(owner, generator)
        before, weight = owner.active, owner.weight.clone()
        look(owner, count, generator)
        change = owner.evolve(min(count, size), pieces=1)

        assert used(owner) <= owner.budget
        assert len(owner.active) == size
        assert owner.active.indices.diff().gt(0).all()
        assert change.dropped <= count
        _what_stays_keeps_everything(before, owner.active)
        _nothing_else_moved(owner, before, weight)
        _start_and_state_give_the_weight(owner, start)
    grown = (start == 0) & (owner.weight != 0)
    assert owner.reactivated() == int(grown.sum())


def _what_stays_keeps_everything(before: Active, after: Active) -> None:
    """A position active before and after keeps its row of the state."""
    old = before[torch.isin(before.indices, after.indices)].tensors()
    new = after[torch.isin(after.indices, before.indices)].tensors()
    assert all(torch.equal(old[name], new[name]) for name in old)


def _nothing_else_moved(owner: RepairedLinear, before: Active, weight: Tensor) -> None:
    """Dropped positions have their base or were removed; what never was active is as it was or removed."""
    flat, then = owner.weight.flatten(), weight.flatten()
    left = before[~torch.isin(before.indices, owner.active.indices)]
    assert ((flat[left.indices] == left.bases) | (flat[left.indices] == 0)).all()
    outside = torch.ones(len(flat), dtype=torch.bool).index_fill(0, before.indices.long(), False)
    assert ((flat == then) | (flat == 0))[outside].all()


def _start_and_state_give_the_weight(owner: RepairedLinear, start: Tensor) -> None:
    again = start.clone()
    again.view(-1)[owner.removed] = 0
    owner.active.write(again)
    assert torch.equal(again, owner.weight)
