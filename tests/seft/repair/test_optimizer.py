"""Adam over the active values: equal to torch's without events, and seeded from the window after an event."""

import torch

from seft.repair import optimizer
from seft.repair.active import Active
from seft.repair.window import GradientSums

WEIGHT = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
INDICES = torch.tensor([1, 4, 9, 13], dtype=torch.int32)


def test_without_events_it_is_adam() -> None:
    active = Active.start(WEIGHT, INDICES)
    twin = torch.nn.Parameter(active.values.clone())
    adam = torch.optim.Adam([twin], lr=0.1)
    for seed in range(5):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        optimizer.step(active, gradient, rate=0.1, weight_decay=0.0)
        twin.grad = gradient
        adam.step()
    torch.testing.assert_close(active.values, twin.detach())


def test_moments_in_bfloat16_need_fewer_bytes_and_agree_with_exact_ones_on_average() -> None:
    weight, every = torch.randn(40, 50).bfloat16(), torch.arange(2000, dtype=torch.int32)
    narrow, exact = Active.start(weight, every), Active.start(weight.float(), every)
    sizes = [sum(each.nbytes for each in active.tensors().values()) / 2000 for active in (narrow, exact)]
    assert sizes == [16, 22]
    generator = torch.Generator().manual_seed(0)
    for step in range(1500):
        # there are no gradients at the end
        gradient = torch.randn(2000, generator=generator) * (step < 1000)
        for active in (narrow, exact):
            optimizer.step(active, gradient, rate=1e-3, weight_decay=0.0)
        if step in {999, 1499}:
            ratio = narrow.squares.double() / exact.squares
            assert abs(float(ratio.mean()) - 1) < 5e-3
            assert float(ratio.std()) < 0.1
    distance = (narrow.values - exact.values).square().mean().sqrt()
    moved = (exact.values - exact.bases).square().mean().sqrt()
    assert distance < 0.1 * moved


def test_weight_decay_pulls_the_delta_to_zero_and_never_the_weight() -> None:
    active = Active.start(WEIGHT, INDICES)
    active.values.add_(1.0)
    optimizer.step(active, torch.zeros(4), rate=0.1, weight_decay=0.5)
    torch.testing.assert_close(active.deltas, torch.full((4,), 0.95))


def test_grown_moments_are_the_mean_and_mean_square_of_a_steps_gradient() -> None:
    gradients = torch.tensor(
        [[1.0, -2.0, 3.0, 0.5], [3.0, -2.0, 1.0, 0.5], [2.0, -2.0, 5.0, 0.5], [2.0, -2.0, 3.0, 0.5]]
    )
    watched = GradientSums(INDICES, gradients.sum(0), (gradients**2).sum(0))
    grown = Active.start(WEIGHT, INDICES)
    optimizer.seed_moments(grown, watched, steps=2, pieces=2)
    assert grown.ages.tolist() == [2, 2, 2, 2]
    mean, variance = 2 * gradients.mean(0), 2 * gradients.var(0, unbiased=False)
    torch.testing.assert_close(grown.means / (1 - 0.9**2), mean)
    torch.testing.assert_close(grown.squares / (1 - 0.999**2), mean**2 + variance)


def test_with_a_constant_gradient_a_grown_position_has_the_moments_of_an_active_one() -> None:
    gradient = torch.tensor([0.5, -1.0, 2.0, -8.0])
    active, grown = Active.start(WEIGHT, INDICES), Active.start(WEIGHT, INDICES)
    for _ in range(2):
        optimizer.step(active, gradient, rate=0.0, weight_decay=0.0)
    optimizer.seed_moments(grown, GradientSums(INDICES, 2 * gradient, 2 * gradient**2), steps=2, pieces=1)
    for trained in (active, grown):
        optimizer.step(trained, gradient, rate=0.1, weight_decay=0.0)
    torch.testing.assert_close(grown.tensors(), active.tensors())


def test_steps_are_smaller_if_gradients_are_larger_than_typical() -> None:
    active = Active.start(WEIGHT, INDICES)
    gradient = torch.tensor([0.5, -1.0, 2.0, -8.0])
    optimizer.step(active, gradient, rate=0.1, weight_decay=0.0, typical=1.0)
    torch.testing.assert_close(active.deltas, -0.1 * torch.tensor([1.0, -1.0, 0.5, -0.125]))


def test_a_typical_gradient_is_the_root_mean_square_of_a_steps_gradient_over_the_sample() -> None:
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = GradientSums(INDICES, gradients.sum(0), (gradients**2).sum(0))
    whole = optimizer.typical_gradient(sample, steps=6, pieces=1)
    torch.testing.assert_close(whole, gradients.square().mean().sqrt())
    mean, variance = 2 * gradients.mean(0), 2 * gradients.var(0, unbiased=False)
    torch.testing.assert_close(
        optimizer.typical_gradient(sample, steps=3, pieces=2), (mean**2 + variance).mean().sqrt()
    )
    assert optimizer.typical_gradient(sample[torch.zeros(4, dtype=torch.bool)], steps=3, pieces=2) == 0


def test_a_noisy_grown_position_takes_a_smaller_first_step_than_a_steady_one() -> None:
    gradients = torch.tensor([[1.0, 9.0], [1.0, -7.0]])
    watched = GradientSums(INDICES[:2], gradients.sum(0), (gradients**2).sum(0))
    grown = Active.start(WEIGHT, INDICES[:2])
    optimizer.seed_moments(grown, watched, steps=2, pieces=1)
    optimizer.step(grown, gradients.mean(0), rate=0.1, weight_decay=0.0)
    steady, noisy = grown.deltas.abs().tolist()
    assert noisy < 0.2 * steady


def test_ages_are_limited() -> None:
    active = Active.start(WEIGHT, INDICES)
    active.ages.fill_(optimizer.MAX_AGE)
    optimizer.step(active, torch.ones(4), rate=0.1, weight_decay=0.0)
    assert active.ages.tolist() == [optimizer.MAX_AGE] * 4
    assert active.values.isfinite().all()
