"""A linear under repair has the outputs of the plain one, and gradients only for its active positions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seft.models.products import intercept_products
from seft.models.targets import Target
from seft.repair import sampled
from seft.repair.linear import RepairedLinear
from seft.repair.sampled import CHUNK, by_pattern, by_rows, sampled_product
from seft.repair.window import CANDIDATES_PER_POSITION
from seft.report import Change
from tests.seft.repair.repairing import Allocated, as_target, observe, sparse_linear, update

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def repaired(rows: int = 24, cols: int = 16, density: float = 0.1, **options: Any) -> tuple[nn.Linear, RepairedLinear]:
    target = Target(sparse_linear(rows, cols, 0.6, **options))
    owner = RepairedLinear(target, density, torch.Generator().manual_seed(0))
    intercept_products({target: owner.product})
    return target.module, owner  # type: ignore[return-value]


@pytest.mark.parametrize("compute", [sampled_product, by_pattern, by_rows])
def test_a_sampled_product_is_the_dense_product_at_its_positions(compute: Product) -> None:
    left, right = (torch.randn(600, size, dtype=torch.float64) for size in (24, 16))
    indices = torch.randperm(24 * 16)[:50].sort().values.int()
    torch.testing.assert_close(compute(left, right, indices), (left.T @ right).flatten()[indices])


@pytest.mark.parametrize("chunk", [1, 5 * 16, 1 << 20])
def test_a_product_by_rows_may_be_computed_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(sampled, "CHUNK", chunk)
    left, right = (torch.randn(6, size, dtype=torch.float64) for size in (24, 16))
    indices = torch.cat([torch.arange(40, 200), torch.tensor([383])]).int()
    torch.testing.assert_close(by_rows(left, right, indices), (left.T @ right).flatten()[indices])


@pytest.mark.parametrize("compute", [sampled_product, by_pattern, by_rows])
def test_a_sampled_product_may_be_empty(compute: Product) -> None:
    assert compute(torch.randn(3, 4), torch.randn(3, 5), torch.zeros(0, dtype=torch.int32)).shape == (0,)


def test_a_sampled_product_of_bfloat16_sums_in_float32() -> None:
    left, right = (torch.randn(500, size).bfloat16() for size in (24, 16))
    indices = torch.arange(0, 24 * 16, 11, dtype=torch.int32)
    expected = (left.double().T @ right.double()).flatten()[indices].float()
    torch.testing.assert_close(sampled_product(left, right, indices), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_most_entries_of_a_product_are_read_from_the_dense_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The dense product of bfloat16 matrices rounds each sum once. It is much faster than the kernel."""
    monkeypatch.setattr(sampled, "by_kernel", None)
    left, right = (torch.randn(500, size).to(dtype) for size in (24, 16))
    indices = torch.arange(0, 24 * 16, 3, dtype=torch.int32)
    found = sampled_product(left, right, indices)
    exact = (left.double().T @ right.double()).flatten()[indices]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.float(), rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_equal_those_of_the_dense_linear(bias: bool) -> None:
    linear, owner = repaired(dtype=torch.float64, bias=bias)
    dense = nn.Linear(16, 24, bias=bias, dtype=torch.float64)
    dense.load_state_dict(linear.state_dict())
    inputs = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    twin = inputs.detach().clone().requires_grad_()
    outputs, expected = linear(inputs), dense(twin)
    assert torch.equal(outputs, expected)
    direction = torch.randn_like(outputs)
    outputs.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(inputs.grad, twin.grad)
    assert dense.weight.grad is not None
    torch.testing.assert_close(owner.take_gradient(), dense.weight.grad.flatten()[owner.active.indices])


def test_gradients_of_micro_batches_add_up_and_are_reset_when_taken() -> None:
    linear, owner = repaired()
    inputs = torch.randn(5, 16)
    for _ in range(2):
        linear(inputs).sum().backward()
    twice = owner.take_gradient()
    linear(inputs).sum().backward()
    torch.testing.assert_close(twice, 2 * owner.take_gradient())
    assert not owner.take_gradient().any()


def test_two_calls_on_noncontiguous_inputs_have_the_gradient_of_the_dense_linear() -> None:
    linear, owner = repaired(16, 16, dtype=torch.float64)
    dense = nn.Linear(16, 16, dtype=torch.float64)
    dense.load_state_dict(linear.state_dict())
    inputs = torch.randn(5, 2, 16, dtype=torch.float64).transpose(0, 1)
    for each in (linear, dense):
        each(each(inputs).tanh()).square().sum().backward()
    assert dense.weight.grad is not None
    torch.testing.assert_close(owner.take_gradient(), dense.weight.grad.flatten()[owner.active.indices])


@pytest.mark.parametrize("tokens", [[], [0], [0, 0]])
def test_an_event_does_not_change_a_linear_without_tokens(tokens: list[int]) -> None:
    linear, owner = repaired()
    before, weight = owner.active, owner.weight.clone()
    owner.open_window(5, 1)
    for count in tokens:
        linear(torch.randn(count, 16, requires_grad=True)).sum().backward()
    assert not owner.take_gradient().any()
    assert owner.evolve(5, steps=1, pieces=1) == Change(0, 0, 0, 0)
    assert torch.equal(owner.active.indices, before.indices)
    assert torch.equal(owner.weight, weight)


@pytest.mark.parametrize(("density", "windowed"), [(0.005, False), (0.005, True), (1.0, False)])
def test_the_dense_gradient_is_never_allocated_only_chunks_of_its_rows(density: float, windowed: bool) -> None:
    rows, cols = 2048, 1024
    linear, owner = repaired(rows, cols, density)
    outputs = linear(torch.randn(4, cols, requires_grad=True))
    with Allocated() as allocated:
        if windowed:
            owner.open_window(100, 1)
        outputs.sum().backward()
        change = owner.evolve(100, steps=1, pieces=1)
    assert change.dropped == (100 if windowed else 0)
    few = not windowed and density < 1
    assert allocated.elements <= (4 * rows + len(owner.active) if few else CHUNK)
    assert allocated.elements < rows * cols
    assert linear.weight.grad is None


def test_the_events_of_a_linear_draw_different_numbers() -> None:
    """The lists of the windows have all positions that may grow."""
    drawn = []
    for event in (1, 1, 2):
        _, owner = repaired()
        window = owner.open_window(owner.weight.numel(), event)
        window.observe(torch.ones(1, 24), torch.ones(1, 16), owner.active.indices)
        drawn.append(window.growth.draws)
    assert torch.equal(drawn[0], drawn[1])
    assert not (drawn[0] == drawn[2]).any()


def test_density_is_a_fraction_of_the_weights_but_at_most_the_nonzeros() -> None:
    assert len(repaired(density=0.1)[1].active) == round(0.1 * 24 * 16)
    linear, owner = repaired(density=1.0)
    assert len(owner.active) == owner.budget == int(linear.weight.count_nonzero())


def test_a_linear_of_zeros_trains_nothing() -> None:
    owner = RepairedLinear(as_target(torch.zeros(4, 4)), 0.5, torch.Generator())
    owner.product(torch.randn(3, 4, requires_grad=True), nn.Linear(4, 4)).sum().backward()  # type: ignore[no-untyped-call]
    assert len(owner.active) == owner.take_gradient().numel() == 0


def test_the_first_active_set_is_among_the_nonzeros() -> None:
    _, owner = repaired(density=0.3)
    assert (owner.active.bases != 0).all()
    assert owner.active.indices.diff().gt(0).all()


def test_grow_changes_no_output() -> None:
    linear, owner = repaired()
    inputs = torch.randn(5, 16)
    owner.budget = linear.weight.numel()
    before = linear(inputs)
    observe(owner, 10, torch.Generator().manual_seed(3))
    change = owner.evolve(10, steps=1, pieces=1)
    assert (change.dropped, change.grown, change.pruned) == (10, 10, 0)
    assert change.reactivated > 0
    assert torch.equal(linear(inputs), before)


def test_an_expert_that_few_micro_batches_reached_grows_with_the_gradient_of_the_step() -> None:
    linear, owner = repaired(dtype=torch.float64)
    inputs, other = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    owner.open_window(24 * 16 // CANDIDATES_PER_POSITION, 1)  # lists every position from the first micro-batch on
    for batch in (inputs, other):
        linear(batch).sum().backward()
    before = owner.active.indices
    owner.evolve(10, steps=1, pieces=32)
    grown = owner.active[~torch.isin(owner.active.indices, before)]
    first, second = (batch.sum(0).expand(24, 16).flatten()[grown.indices] for batch in (inputs, other))
    mean, mean_square = (first + second) / 32, (first**2 + second**2) / 32
    assert len(grown)
    torch.testing.assert_close(grown.means / (1 - 0.9), 32 * mean)
    torch.testing.assert_close(grown.squares / (1 - 0.999), (32 * mean) ** 2 + 32 * (mean_square - mean**2))


def test_steady_clipping_changes_nothing_that_seft_does() -> None:
    """Adam does not depend on the scale of gradients; typical gradient and seeded moments must not either."""

    def trained(scale: float) -> RepairedLinear:
        linear, owner = repaired(dtype=torch.float64, bias=False)
        generator = torch.Generator().manual_seed(1)
        for step in range(1, 13):
            window = owner.open_window(10, step) if step % 4 == 1 else owner.window
            inputs = torch.randn(5, 16, dtype=torch.float64, generator=generator)
            linear(inputs).square().sum().backward()
            update(owner, owner.take_gradient() * scale, 0.03)
            if window is not None:
                window.scales.append(scale)
            if step % 4 == 2:
                owner.evolve(10, steps=2, pieces=1)
        return owner

    free, clipped = trained(1.0), trained(0.01)
    assert torch.equal(free.active.indices, clipped.active.indices)
    torch.testing.assert_close(free.weight, clipped.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(0.01 * free.typical, clipped.typical)
