"""Changes computed from few values: compared with dense float64 formulas, computed in chunks, and never stored."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seft.config import RepairMethod
from seft.models.products import intercept_products
from seft.models.targets import Target, target_linears
from seft.repair import Repair, sampled
from seft.repair.dense_change import ChangedLinear, Formula
from seft.repair.masked_lora import LowRank
from seft.repair.sampled import CHUNK
from seft.repair.spp import Scaling
from tests.seft.repair.repairing import TOKENS, Allocated, as_target, pruned_tiny, short, sparse_linear

ROWS, COLS, RANK = 24, 16, 5
FORMULAS = [LowRank, Scaling]

both = pytest.mark.parametrize("formula", FORMULAS)


def masked_lora(base: Tensor, values: Tensor) -> Tensor:
    """Return W0 + 2 * mask(B A), as in the papers."""
    first, second = values[: RANK * COLS].view(RANK, COLS), values[RANK * COLS :].view(ROWS, RANK)
    return base + 2 * (base != 0) * (second @ first)


def spp(base: Tensor, values: Tensor) -> Tensor:
    """Return W0 * (1 + 2 * Repeat(alpha) * Repeat(beta)), as in the paper, row by row."""
    alpha, beta = values[: RANK * COLS].view(RANK, COLS), values[RANK * COLS :]
    rows = [base[row] * (1 + 2 * alpha[row * RANK // ROWS] * beta[row]) for row in range(ROWS)]
    return torch.stack(rows)


REFERENCES = {LowRank: masked_lora, Scaling: spp}


def changed(formula: type[Formula], rows: int = ROWS, cols: int = COLS, **options: Any) -> tuple[Target, ChangedLinear]:
    target = Target(sparse_linear(rows, cols, 0.6, **options))
    owner = ChangedLinear(target, formula((rows, cols), RANK), torch.Generator().manual_seed(0))
    intercept_products({target: owner.product})
    return target, owner


def bias_of(target: Target) -> Tensor | None:
    assert isinstance(target.module, nn.Linear)
    return target.module.bias


def shaken(owner: ChangedLinear) -> ChangedLinear:
    """Add noise to the trained values, so that the weights change."""
    owner.vector.values.add_(torch.randn(owner.trained_values, generator=torch.Generator().manual_seed(1)))
    return owner


@both
@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_equal_autograd_through_the_dense_formula(
    monkeypatch: pytest.MonkeyPatch, formula: type[Formula], chunk: int, *, bias: bool
) -> None:
    monkeypatch.setattr(sampled, "CHUNK", chunk)
    target, owner = changed(formula, dtype=torch.float64, bias=bias)
    base = target.weight.clone()
    values = shaken(owner).vector.values.clone().requires_grad_()
    dense = REFERENCES[formula](base, values)
    inputs = torch.randn(2, 5, COLS, dtype=torch.float64, requires_grad=True)
    twin = inputs.detach().clone().requires_grad_()
    outputs, expected = target.module(inputs), nn.functional.linear(twin, dense, bias_of(target))
    torch.testing.assert_close(outputs, expected)
    direction = torch.randn_like(outputs)
    outputs.backward(direction)
    expected.backward(direction)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(inputs.grad, twin.grad)
    torch.testing.assert_close(owner.take_gradient(), values.grad)
    assert torch.equal(target.weight, base)
    owner.merge()
    torch.testing.assert_close(target.weight, dense.detach())


@both
def test_the_weights_that_are_merged_are_those_that_it_computed_with(formula: type[Formula]) -> None:
    target, owner = changed(formula, dtype=torch.bfloat16)
    inputs = torch.randn(5, COLS, dtype=torch.bfloat16)
    before = target.module(inputs)
    shaken(owner)
    outputs = target.module(inputs)
    owner.merge()
    assert torch.equal(outputs, nn.functional.linear(inputs, target.weight, bias_of(target)))
    assert not torch.equal(outputs, before)


@both
def test_initial_values_change_nothing_and_have_a_gradient(formula: type[Formula]) -> None:
    target, owner = changed(formula)
    before = target.weight.clone()
    target.module(torch.randn(5, COLS)).sum().backward()
    assert owner.take_gradient().any()
    owner.merge()
    assert torch.equal(target.weight, before)


@both
def test_no_matrix_as_large_as_the_weight_is_allocated(formula: type[Formula]) -> None:
    rows, cols = 2048, 1024
    target, owner = changed(formula, rows, cols)
    inputs = torch.randn(4, cols, requires_grad=True)
    with Allocated() as allocated:
        target.module(inputs).sum().backward()
        owner.update(owner.take_gradient(), 0.1, 0.0)
        owner.merge()
    assert allocated.elements == CHUNK < rows * cols


def large_tensors(least: int) -> int:
    """Return the bytes of all living tensors of floating-point numbers with at least this number of elements."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
    large = [each for each in tensors if each.is_floating_point() and each.numel() >= least]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in large}.values())


@pytest.mark.parametrize("method", [RepairMethod.MASKED_LORA, RepairMethod.SPP])
def test_between_steps_no_matrix_as_large_as_a_weight_exists_but_the_weights(method: RepairMethod) -> None:
    model = pruned_tiny()
    least = min(target.weight.numel() for target in target_linears(model).values())
    before = large_tensors(least)
    repair = Repair(model, TOKENS, short(method=method))
    for _ in range(2):
        repair.advance()
    assert large_tensors(least) == before >= sum(each.weight.nbytes for each in target_linears(model).values())
    copies = [each.weight.clone() for each in target_linears(model).values()]
    assert large_tensors(least) == before + sum(each.nbytes for each in copies)


@both
def test_zeros_stay_zero_and_the_vector_is_the_whole_state(formula: type[Formula]) -> None:
    target, owner = changed(formula)
    before = target.weight.clone()
    for seed in range(3):
        gradient = torch.randn(owner.trained_values, generator=torch.Generator().manual_seed(seed))
        owner.update(gradient, 0.1, 0.01)
    assert torch.equal(target.weight, before)
    again = ChangedLinear(as_target(before.clone()), formula((ROWS, COLS), RANK), torch.Generator())
    again.resume({name: tensor.clone() for name, tensor in owner.tensors().items()})
    for each in (owner, again):
        each.merge()
    assert torch.equal(target.weight == 0, before == 0)
    assert not torch.equal(target.weight, before)
    assert torch.equal(again.weight, target.weight)


@both
def test_rank_zero_trains_nothing_and_passes_gradients_on(formula: type[Formula]) -> None:
    linear = nn.Linear(4, 3, bias=False)
    owner = ChangedLinear(Target(linear), formula((3, 4), 0), torch.Generator())
    inputs = torch.randn(5, 4, requires_grad=True)
    owner.product(inputs, linear).sum().backward()  # type: ignore[no-untyped-call]
    owner.update(owner.take_gradient(), 0.1, 0.0)
    assert owner.trained_values == 0
    torch.testing.assert_close(inputs.grad, linear.weight.sum(0).expand(5, 4))
