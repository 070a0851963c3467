"""The rules of the paper: an event is compared with one that the dense sum of gradients decides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern
from seft.prune.mask import smallest_in_groups
from seft.repair import sampled
from seft.repair.linear import RepairedLinear
from seft.repair.published import PublishedWindow
from seft.repair.window import CANDIDATES_PER_POSITION
from tests.seft.repair.repairing import as_target, sparse_linear, update

ROWS, COLS = 24, 16
WEIGHT = sparse_linear(ROWS, COLS, 0.6).weight.detach()
ACTIVE = torch.arange(0, ROWS * COLS, 31, dtype=torch.int32)

Pair = tuple[Tensor, Tensor]


def batches(number: int, seed: int = 5, tokens: int = 7) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(ROWS, COLS)] * number
    return [tuple(torch.randn(tokens, size, generator=generator) for size in pair) for pair in sizes]  # type: ignore[misc]


def dense_gradient(pairs: list[Pair]) -> Tensor:
    return torch.stack([left.double().T @ right.double() for left, right in pairs]).sum(0).flatten()


def watched(pairs: list[Pair], count: int, weight: Tensor = WEIGHT, pattern: Pattern = UNSTRUCTURED) -> PublishedWindow:
    window = PublishedWindow(as_target(weight), count, 0, pattern)
    for left, right in pairs:
        window.observe(left, right, ACTIVE)
    return window


def largest(gradient: Tensor, allowed: Tensor) -> list[int]:
    """Return the allowed positions by falling |gradient|."""
    return gradient.abs().masked_fill(~allowed, -1).argsort(descending=True)[: int(allowed.sum())].tolist()


@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
@pytest.mark.parametrize(("number", "count"), [(1, 6), (3, 6), (5, 60)])
def test_the_largest_sums_of_gradients_grow_and_the_smallest_products_with_the_weight_become_zero(
    monkeypatch: pytest.MonkeyPatch, chunk: int, number: int, count: int
) -> None:
    monkeypatch.setattr(sampled, "CHUNK", chunk)
    pairs = batches(number)
    window, gradient = watched(pairs, count), dense_gradient(pairs)
    listed = count * CANDIDATES_PER_POSITION
    allowed = torch.ones(ROWS * COLS, dtype=torch.bool).index_fill(0, ACTIVE.long(), value=False)
    growth, _ = window.clipped(ACTIVE)
    by_score = growth.indices[growth.scores.argsort(descending=True)]
    kinds = allowed & (WEIGHT.flatten() != 0), allowed & (WEIGHT.flatten() == 0)
    best = {place for kind in kinds for place in largest(gradient, kind)[:listed]}
    assert by_score.tolist() == [place for place in largest(gradient, allowed) if place in best]
    torch.testing.assert_close(growth.sums.double(), gradient[growth.indices], rtol=1e-4, atol=1e-5)
    change = (WEIGHT.flatten() * gradient).abs().masked_fill(WEIGHT.flatten() == 0, torch.inf)
    assert window.removal(ACTIVE).tolist() == change.argsort()[: min(listed, int(WEIGHT.count_nonzero()))].tolist()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    pattern=st.sampled_from([UNSTRUCTURED, Pattern(2, 4), Pattern(4, 8)]),
    density=st.sampled_from([0.03, 0.2]),
    fraction=st.sampled_from([0.2, 1.0]),
    most=st.sampled_from([1, 4, 1000]),
    number=st.integers(1, 4),
)
def test_an_event_is_the_one_that_a_dense_gradient_decides(
    *, seed: int, pattern: Pattern, density: float, fraction: float, most: int, number: int
) -> None:
    weight = sparse_linear(ROWS, COLS, 0.6, seed).weight.detach()
    if pattern.grouped:
        weight = weight.masked_fill(smallest_in_groups(weight.abs(), pattern), 0.0)
    owner = RepairedLinear(as_target(weight), density, torch.Generator().manual_seed(seed), pattern, PublishedWindow)
    owner.most_zeros = most
    pairs = batches(number, seed)
    before, start = owner.active, weight.flatten().clone()
    count = round(fraction * len(before))
    window = owner.open_window(count, 1)
    for left, right in pairs:
        window.observe(left, right, before.indices)
    owner.evolve(count, steps=number, pieces=1)

    gradient = dense_gradient(pairs)
    allowed = torch.ones(ROWS * COLS, dtype=torch.bool).index_fill(0, before.indices.long(), value=False)
    if pattern.grouped:
        allowed &= start != 0
    listed = count * CANDIDATES_PER_POSITION
    candidates = largest(gradient, allowed & (start != 0))[:listed]
    candidates += largest(gradient, allowed & (start == 0))[: min(most, listed)]
    ranked = [index for index in largest(gradient, allowed) if index in candidates]
    grown = set(owner.active.indices.tolist()) - set(before.indices.tolist())
    assert grown == set(ranked[: len(grown)])
    assert len(grown) >= min(count, len(ranked))
    change = (start * gradient).abs().masked_fill(start == 0, torch.inf)
    change[list(grown)] = torch.inf
    if len(grown) == min(count, len(ranked)):
        change[owner.active.indices.long()] = torch.inf  # No candidate replaces one of these.
    grown_zeros = [index for index in grown if start[index] == 0]
    assert set(owner.removed.indices.tolist()) == set(change.argsort()[: len(grown_zeros)].tolist())
    assert not (pattern.grouped and grown_zeros)


def test_steps_have_full_size_after_an_event() -> None:
    owner = RepairedLinear(
        as_target(WEIGHT.clone()), 0.1, torch.Generator().manual_seed(0), UNSTRUCTURED, PublishedWindow
    )
    left, right = batches(1)[0]
    owner.open_window(5, 1).observe(left, right, owner.active.indices)
    owner.evolve(5, steps=1, pieces=1)
    steady = torch.full_like(owner.active.values, 1e3)
    for tensor in (owner.active.means, owner.active.squares, owner.active.ages):
        tensor.zero_()
    before = owner.active.values.clone()
    update(owner, steady, 0.1)
    torch.testing.assert_close(before - owner.active.values, torch.full_like(before, 0.1))
