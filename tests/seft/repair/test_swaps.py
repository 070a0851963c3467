"""Swaps of zeros and nonzeros: the estimates are exact where the loss is quadratic, and noise counts as nothing."""

import pytest
import torch
from torch import Tensor

from seft.config import UNSTRUCTURED, Pattern, RepairConfig
from seft.repair import swaps
from seft.repair.nonzeros import NonzeroLinear, Plan
from seft.repair.swaps import Observed
from seft.repair.window import GradientSums
from tests.seft.repair.repairing import as_target, sparse_linear

TOKENS = 64


def test_the_mean_gradient_of_a_step_and_its_variance_follow_from_the_micro_batches() -> None:
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    listed = GradientSums(torch.arange(4, dtype=torch.int32), gradients.sum(0), gradients.square().sum(0))
    mean, noise = Observed(3, 6).mean_and_noise(listed)
    torch.testing.assert_close(mean, gradients.view(3, 2, 4).sum(1).mean(0))
    torch.testing.assert_close(noise, 2**2 * gradients.var(0) / 6)


def test_noise_is_subtracted_and_no_new_weight_is_larger_than_the_others() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, -3.0]])
    places, noise = torch.tensor([0, 1, 2, 4], dtype=torch.int32), torch.tensor([0.0, 0.5, 1.0, 0.0])
    gradients = torch.stack([1 - noise.sqrt(), 1 + noise.sqrt()])  # of two steps, with the mean 1
    listed = GradientSums(places, gradients.sum(0), gradients.square().sum(0))
    growth = swaps.estimate_growth(weight, listed, Observed(2, 2), torch.tensor([1.0, 0.1]), torch.ones(4))
    assert growth.zeros.tolist() == [4, 0, 1]
    torch.testing.assert_close(growth.gains, torch.tensor([5.0, 0.5, 0.25]))
    torch.testing.assert_close(growth.values, torch.tensor([-3.0, -1.0, -0.5]))


def test_zeros_with_large_gradients_are_listed_once_with_the_gradients_since_they_were_listed() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradients = sparse_linear(6, 8, 0.5).weight.detach(), list[Tensor]()
    listed = GradientSums.empty(weight)
    for _ in range(20):
        gradients.append(torch.randn(6, 8, generator=generator).masked_fill(weight != 0, 0))
        listed = swaps.observe(listed, gradients[-1], weight)
        assert listed.indices.diff().gt(0).all()
        assert len(listed) == swaps.candidate_count(weight)
        sums = torch.stack(gradients).flatten(1).flip(0).cumsum(0)[:, listed.indices]
        assert torch.isclose(listed.sums, sums).any(0).all()


def observed(weight: Tensor, place: int, steps: int = 3) -> tuple[NonzeroLinear, Observed]:
    """Return the owner of a weight matrix after some steps with the gradient 1 at `place` and the curvature 1."""
    generator = torch.Generator().manual_seed(0)
    owner, done = NonzeroLinear(as_target(weight), 0, "a", watch=True, swapping=True), Observed()
    row, col = divmod(place, weight.shape[1])
    for step in range(1, steps + 1):
        owner.plan = Plan(step, None, collects=True)
        right, left = (torch.randint(2, (TOKENS, size), generator=generator) * 2.0 - 1 for size in weight.mT.shape)
        left[:, row] = right[:, col]
        owner.gradient(left / TOKENS, right)
        owner.update_curvature()
        done = done.plus_step(1)
    return owner, done


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(2, 4)])
@pytest.mark.parametrize(("smallest", "swapped"), [(0.9, True), (1.1, False)])
def test_a_zero_grows_if_it_gains_more_than_the_smallest_weight_costs(
    monkeypatch: pytest.MonkeyPatch, pattern: Pattern, smallest: float, *, swapped: bool
) -> None:
    monkeypatch.setattr(swaps, "MAX_SWAPPED_FRACTION", 0.1)
    weight = torch.tensor([2.0, 2.0, 0.0, 0.0]).repeat(8, 2)
    weight[3, 4] = smallest
    owner, done = observed(weight, 3 * 8 + 6)
    swap, _ = owner.swap(done, pattern, owner.tokens)
    assert (swap.grown.tolist(), swap.removed.tolist()) == (([3 * 8 + 6], [3 * 8 + 4]) if swapped else ([], []))
    assert swap.values.tolist() == pytest.approx([-1.0] * swapped)


@pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(2, 4)])
def test_an_event_swaps_at_most_half_a_percent_of_the_nonzeros_and_empties_the_list(pattern: Pattern) -> None:
    """Every listed zero gains more than the smallest nonzeros cost, because the nonzeros are tiny."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([1e-6, 1e-6, 0.0, 0.0]).repeat(64, 16)
    owner = NonzeroLinear(as_target(weight), 0, "a", watch=True, swapping=True)
    owner.plan = Plan(1, None, collects=True)
    left, right = (torch.randn(1, 64, generator=generator) for _ in range(2))
    for _ in range(2):
        owner.gradient(left, right)
    owner.update_curvature()
    assert len(owner.candidates) == 40
    swap, _ = owner.swap(Observed(1, 2), pattern, owner.tokens)
    assert len(swap.grown) == len(swap.removed) == 10
    assert int((weight != 0).sum()) == 2048
    assert len(owner.candidates) == 0


def test_swaps_come_once_in_so_many_tokens_after_the_first_step_and_leave_time_to_settle() -> None:
    config = RepairConfig(40, density="all", batch_tokens=96, sequence_tokens=32, swap_tokens=250, settle=0.25)
    late = [step for step in range(1, 41) if swaps.is_event(config, 20, step)]
    assert late == [23, 26, 28]
    assert [step for step in range(1, 41) if swaps.is_event(config, 0, step)] == [
        3,
        6,
        8,
        11,
        14,
        16,
        19,
        21,
        24,
        27,
        29,
    ]


def test_the_last_step_that_leaves_time_to_settle_may_have_a_swap() -> None:
    config = RepairConfig(40, density="all", batch_tokens=96, sequence_tokens=32, swap_tokens=240, settle=0.25)
    assert [step for step in range(1, 41) if swaps.is_event(config, 0, step)][-1] == config.last_event == 30
