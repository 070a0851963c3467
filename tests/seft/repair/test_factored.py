"""The optimizer of all nonzeros: equal to its formula in float64, and the same random numbers for the same names."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from seft.native import kernels
from seft.repair import factored, passes
from seft.repair.factored import Moments
from seft.repair.nonzeros import NonzeroLinear, Plan
from tests.seft.repair.repairing import as_target

RATE, DECAY = 0.1, 0.99


def sparse(rows: int, cols: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    weight[torch.rand(rows, cols, generator=generator) < 0.6] = 0
    return weight.to(dtype)


def gradients(rows: int, cols: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [
        torch.randn(rows, cols, generator=generator, dtype=torch.float64) * scale for scale in (1, 0.1, 7, 0.01)[:count]
    ]


def reference(weight: Tensor, steps: list[Tensor]) -> Tensor:
    """Return the weight after some steps, by the formula in the documentation, entry by entry over dense matrices."""
    mask, weight = weight != 0, weight.clone()
    by_row, by_col = torch.zeros(len(weight)).double(), torch.zeros(weight.shape[1]).double()
    counts = mask.sum(1).clamp(min=1), mask.sum(0).clamp(min=1)
    for number, gradient in enumerate(steps, 1):
        masked = gradient * mask
        size, usual = (masked**2).sum() / mask.sum(), (by_row * mask.sum(1)).sum() / mask.sum()
        ratio = (size * (1 - DECAY ** (number - 1)) / usual).sqrt() if number > 1 else 0.0
        by_row = DECAY * by_row + (1 - DECAY) * (masked**2).sum(1) / counts[0]
        by_col = DECAY * by_col + (1 - DECAY) * (masked**2).sum(0) / counts[1]
        corrected = 1 - DECAY**number
        rows, cols = by_row / corrected, by_col / corrected
        mean = (rows * mask.sum(1)).sum() / mask.sum()
        normalised = torch.where(mask, masked / (rows[:, None] * cols / mean).sqrt(), 0)
        largest = ((normalised**2).sum() / mask.sum()).sqrt()
        weight -= RATE * normalised / max(1.0, float(largest)) / max(1.0, float(ratio) / 2)
    return weight


@pytest.mark.parametrize(("larger", "size"), [(0.1, 0.1), (1.0, 1.0), (2.0, 1.0), (5.0, 0.4), (1000.0, 0.002)])
def test_a_gradient_that_rises_suddenly_takes_a_smaller_step(larger: float, size: float) -> None:
    weight, gradient = sparse(20, 30, 3), gradients(20, 30, 1)[0]
    moments = Moments.start(weight)
    for number in range(50):
        factored.step(weight, gradient.clone(), moments, RATE, seed=0, name=str(number))
    before = weight.clone()
    factored.step(weight, larger * gradient, moments, RATE, seed=0, name="last")
    nonzero = int((before != 0).sum())
    assert float((weight - before).norm()) / nonzero**0.5 == pytest.approx(RATE * size, rel=0.05)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
def test_steps_equal_the_formula_in_any_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(passes, "CACHED", chunk)
    weight = sparse(7, 12, 0)
    start, moments, steps = weight.clone(), Moments.start(weight), gradients(7, 12, 4)
    for number, gradient in enumerate(steps):
        norm = factored.step(weight, gradient.clone(), moments, RATE, seed=0, name=str(number))
        torch.testing.assert_close(norm, (gradient * (start != 0)).norm())
    torch.testing.assert_close(weight, reference(start, steps))
    assert torch.equal(weight == 0, start == 0)


def test_rows_and_columns_without_nonzeros_or_gradients_change_nothing_else() -> None:
    weight = sparse(6, 8, 1)
    weight[2], weight[:, 3] = 0, 0
    gradient = gradients(6, 8, 1)[0]
    gradient[4] = 0
    start, moments = weight.clone(), Moments.start(weight)
    factored.step(weight, gradient.clone(), moments, RATE, seed=0, name="")
    assert weight.isfinite().all()
    assert torch.equal(weight[4], start[4])
    changed = (start != 0) & (gradient != 0)
    assert torch.equal(weight != start, changed)


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_a_gradient_that_is_zero_or_not_finite_changes_nothing(value: float) -> None:
    weight = sparse(6, 8, 2)
    start, moments = weight.clone(), Moments.start(weight)
    before = moments.copy()
    gradient = torch.zeros_like(weight)
    gradient[tuple(weight.nonzero()[0])] = value
    factored.step(weight, gradient, moments, RATE, seed=0, name="")
    assert torch.equal(weight, start)
    assert all(map(torch.equal, moments.tensors().values(), before.tensors().values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_random_numbers_depend_on_seed_and_name_alone(dtype: torch.dtype) -> None:
    def after(seed: int, name: str) -> Tensor:
        weight = sparse(20, 30, 3, dtype)
        gradient = gradients(20, 30, 1)[0].to(dtype)
        factored.step(weight, gradient, Moments.start(weight), 1e-3, seed=seed, name=name)
        return weight

    assert torch.equal(after(0, "a"), after(0, "a"))
    narrow = dtype is torch.bfloat16
    assert torch.equal(after(0, "a"), after(1, "a")) is not narrow
    assert torch.equal(after(0, "a"), after(0, "b")) is not narrow


def test_small_steps_count_in_bfloat16_although_each_is_below_the_rounding() -> None:
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    moments, gradient = Moments.start(weight), torch.ones_like(weight)
    for number in range(100):
        factored.step(weight, gradient.clone(), moments, 1e-4, seed=0, name=str(number))
    assert 1 - float(weight.float().mean()) == pytest.approx(100 * 1e-4, rel=0.1)


def test_small_steps_of_a_linear_move_nearly_all_weights_in_bfloat16() -> None:
    """With the same random numbers in every step, only a few weights would move, and they would move too far."""
    target = as_target(torch.ones(64, 64, dtype=torch.bfloat16))
    linear = NonzeroLinear(target, 0, "a")
    for number in range(1, 101):
        linear.plan = Plan(number, 1e-4)
        linear.gradient(*torch.ones(2, 1, 64, dtype=torch.bfloat16))
    weight = target.weight.float()
    assert 1 - float(weight.mean()) == pytest.approx(100 * 1e-4, rel=0.1)
    assert float((weight != 1).float().mean()) > 0.8


def test_a_step_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake tensor has no values, so reading one on the host raises an error."""
    monkeypatch.setattr(kernels, "library", lambda: None)  # a kernel would read the addresses of the tensors
    with FakeTensorMode():
        weight, gradient = (torch.ones(4, 8, dtype=torch.bfloat16) for _ in range(2))
        moments = Moments.start(weight)
        for number in range(2):
            factored.step(weight, gradient, moments, RATE, seed=0, name=str(number))
        with pytest.raises(DataDependentOutputException):
            float(moments.age)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_row_without_gradient_stays_beside_rows_with_large_ones(
    monkeypatch: pytest.MonkeyPatch, kernel: bool
) -> None:
    if not kernel:
        monkeypatch.setattr(kernels, "library", lambda: None)
    weight, gradient = sparse(20, 30, 3, torch.float32), 1e8 * gradients(20, 30, 1)[0].float()
    gradient[4], before = 0, weight.clone()
    factored.step(weight, gradient, Moments.start(weight), 1e-3, seed=0, name="")
    assert weight.isfinite().all()
    assert torch.equal(weight[4], before[4])
    assert not torch.equal(weight, before)
