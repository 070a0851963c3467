"""Changes computed from few values: compared with dense float64 formulas, and computed in chunks."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seft.models.products import intercept_products
from seft.models.targets import Target
from seft.repair import sampled
from seft.repair.dense_change import ChangedLinear, Formula
from seft.repair.masked_lora import LowRank
from seft.repair.sampled import CHUNK
from seft.repair.spp import Scaling
from tests.seft.repair.repairing import Allocated, sparse_linear

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
    target = Target(sparse_linear(rows, cols, 0.6, bias=False, **options))
    owner = ChangedLinear(target.weight, formula((rows, cols), RANK), torch.Generator().manual_seed(0))
    intercept_products({target: owner.product})
    return target, owner


@both
@pytest.mark.parametrize("chunk", [1, 5 * COLS, 1 << 20])
def test_gradients_and_weights_equal_autograd_through_the_dense_formula(
    monkeypatch: pytest.MonkeyPatch, formula: type[Formula], chunk: int
) -> None:
    monkeypatch.setattr(sampled, "CHUNK", chunk)
    target, owner = changed(formula, dtype=torch.float64)
    base = target.weight.clone()
    owner.vector.values.add_(torch.randn(owner.trained_values, generator=torch.Generator().manual_seed(1)))
    owner.resume(owner.tensors())
    values = owner.vector.values.clone().requires_grad_()
    dense = REFERENCES[formula](base, values)
    torch.testing.assert_close(target.weight, dense.detach())
    inputs = torch.randn(2, 5, COLS, dtype=torch.float64, requires_grad=True)
    twin = inputs.detach().clone().requires_grad_()
    outputs, expected = target.module(inputs), twin @ dense.T
    torch.testing.assert_close(outputs, expected)
    direction = torch.randn_like(outputs)
    outputs.backward(direction)
    expected.backward(direction)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(inputs.grad, twin.grad)
    torch.testing.assert_close(owner.take_gradient(), values.grad)


@both
def test_initial_values_change_nothing_and_have_a_gradient(formula: type[Formula]) -> None:
    target, owner = changed(formula)
    before = target.weight.clone()
    owner.resume(owner.tensors())
    assert torch.equal(target.weight, before)
    target.module(torch.randn(5, COLS)).sum().backward()
    assert owner.take_gradient().any()


@both
def test_no_matrix_as_large_as_the_weight_is_allocated(formula: type[Formula]) -> None:
    rows, cols = 2048, 1024
    target, owner = changed(formula, rows, cols)
    outputs = target.module(torch.randn(4, cols, requires_grad=True))
    with Allocated() as allocated:
        outputs.sum().backward()
        owner.update(owner.take_gradient(), 0.1, 0.0)
    assert allocated.elements == CHUNK < rows * cols


@both
def test_zeros_stay_zero_and_the_vector_is_the_whole_state(formula: type[Formula]) -> None:
    target, owner = changed(formula)
    zeros = target.weight == 0
    twin = copy.deepcopy(target.weight)
    for seed in range(3):
        gradient = torch.randn(owner.trained_values, generator=torch.Generator().manual_seed(seed))
        owner.update(gradient, 0.1, 0.01)
    assert torch.equal(target.weight == 0, zeros)
    again = ChangedLinear(twin, formula((ROWS, COLS), RANK), torch.Generator())
    again.resume({name: tensor.clone() for name, tensor in owner.tensors().items()})
    assert torch.equal(again.weight, target.weight)


@both
def test_rank_zero_trains_nothing_and_passes_gradients_on(formula: type[Formula]) -> None:
    linear = nn.Linear(4, 3, bias=False)
    owner = ChangedLinear(linear.weight.detach(), formula((3, 4), 0), torch.Generator())
    inputs = torch.randn(5, 4, requires_grad=True)
    owner.product(inputs, linear).sum().backward()  # type: ignore[no-untyped-call]
    owner.update(owner.take_gradient(), 0.1, 0.0)
    assert owner.trained_values == 0
    torch.testing.assert_close(inputs.grad, linear.weight.sum(0).expand(5, 4))
